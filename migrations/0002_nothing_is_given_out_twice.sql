-- Versions, ids and streams stay what they are when events move to the archive, whoever writes: triggers hold in every client, foreign
-- keys only where it turns them on.

-- The archive takes what the log would take. A trigger, since SQLite adds no check to a table that is there, and to make the table anew would
-- copy it, and drop what the application has put on it.
CREATE TRIGGER archived_events_are_whole BEFORE INSERT ON archived_events
WHEN NEW.version < 1 OR NEW.type = '' OR NOT json_valid(NEW.data)
  OR CASE WHEN NEW.metadata IS NULL THEN 0 WHEN json_valid(NEW.metadata) THEN json_type(NEW.metadata) <> 'object' ELSE 1 END
  OR NOT EXISTS (SELECT 1 FROM streams s WHERE s.stream_id = NEW.stream_id)
BEGIN
    SELECT raise(ABORT, 'no event of the log is like this one');
END;

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
