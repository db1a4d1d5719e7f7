-- Events may be archived in a file of its own. Then the file that they came from says where they are.

-- Which file that is (its path, from this file's folder where it is relative), and how many events were moved there. No row: there is none.
CREATE TABLE archive_file (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    id    TEXT NOT NULL,
    path  TEXT NOT NULL,
    moved INTEGER NOT NULL
) STRICT;

-- The newest version that was moved there: no trigger looks into another file.
ALTER TABLE streams ADD COLUMN archived INTEGER NOT NULL DEFAULT 0;

DROP TRIGGER events_are_new;
CREATE TRIGGER events_are_new BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM archived_events a WHERE a.id = NEW.id)
  OR EXISTS (SELECT 1 FROM archived_events a WHERE a.stream_id = NEW.stream_id AND a.version = NEW.version)
  OR EXISTS (SELECT 1 FROM streams s WHERE s.stream_id = NEW.stream_id AND s.archived >= NEW.version)
BEGIN
    SELECT raise(ABORT, 'an archived event has this id or version');
END;

DROP TRIGGER streams_stay;
CREATE TRIGGER streams_stay BEFORE DELETE ON streams
WHEN OLD.archived > 0
  OR EXISTS (SELECT 1 FROM events e WHERE e.stream_id = OLD.stream_id)
  OR EXISTS (SELECT 1 FROM archived_events a WHERE a.stream_id = OLD.stream_id)
BEGIN
    SELECT raise(ABORT, 'the stream has events');
END;
