-- Versions, ids and streams stay what they are when events move to the archive, whoever writes: triggers hold in every client, foreign
-- keys only where it turns them on.

-- The archive with the checks of the log. Made anew, since SQLite adds none to a table that is there; not renamed, since that fails where
-- a view or trigger of the application's names it.
CREATE TABLE archived_events_before AS SELECT * FROM archived_events;
DROP TABLE archived_events;
CREATE TABLE archived_events (
    position    INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    stream_id   TEXT NOT NULL REFERENCES streams (stream_id),
    stream_type TEXT NOT NULL,
    version     INTEGER NOT NULL CHECK (version >= 1),
    type        TEXT NOT NULL CHECK (type <> ''),
    data        TEXT NOT NULL CHECK (json_valid(data)),
    metadata    TEXT CHECK (metadata IS NULL OR (json_valid(metadata) AND json_type(metadata) = 'object')),
    time        TEXT NOT NULL,
    UNIQUE (stream_id, version)
) STRICT;
INSERT INTO archived_events SELECT * FROM archived_events_before;
DROP TABLE archived_events_before;

-- An event's id and version are not those of one that was archived. (A move out of the archive deletes there first.)
CREATE TRIGGER events_are_new BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM archived_events a WHERE a.id = NEW.id)
  OR EXISTS (SELECT 1 FROM archived_events a WHERE a.stream_id = NEW.stream_id AND a.version = NEW.version)
BEGIN
    SELECT raise(ABORT, 'an archived event has this id or version');
END;

-- A stream that was forgotten would begin at version 1 again.
CREATE TRIGGER streams_stay BEFORE DELETE ON streams
WHEN EXISTS (SELECT 1 FROM events e WHERE e.stream_id = OLD.stream_id)
  OR EXISTS (SELECT 1 FROM archived_events a WHERE a.stream_id = OLD.stream_id)
BEGIN
    SELECT raise(ABORT, 'the stream has events');
END;
