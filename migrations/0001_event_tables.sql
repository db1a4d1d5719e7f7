-- outboxd's own tables, for applications that have none yet. Plain SQL inserts from any language are enough.
-- The application writes them; outboxd only reads them.

-- The transactional outbox: insert in the same transaction as the change that the event tells of.
CREATE TABLE outbox (
    position    INTEGER PRIMARY KEY AUTOINCREMENT,      -- the order; never reused
    id          TEXT NOT NULL UNIQUE DEFAULT (          -- what consumers recognise duplicates by
                    lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
                          substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    stream_id   TEXT,
    stream_type TEXT,
    type        TEXT NOT NULL CHECK (type <> ''),
    key         ANY,                                    -- order is kept by it; NULL = stream_id
    payload     ANY,
    headers     TEXT CHECK (headers IS NULL OR (json_valid(headers) AND json_type(headers) = 'object')),
    time        TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

-- The event log, for applications that keep their state as events.
CREATE TABLE streams (
    stream_id   TEXT PRIMARY KEY,
    stream_type TEXT NOT NULL,
    version     INTEGER NOT NULL                        -- the newest event's; kept true by the trigger below
) STRICT;

CREATE TABLE events (
    position    INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE DEFAULT (
                    lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
                          substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    stream_id   TEXT NOT NULL,
    stream_type TEXT NOT NULL,
    version     INTEGER NOT NULL CHECK (version >= 1),
    type        TEXT NOT NULL CHECK (type <> ''),
    data        TEXT NOT NULL CHECK (json_valid(data)),
    metadata    TEXT CHECK (metadata IS NULL OR (json_valid(metadata) AND json_type(metadata) = 'object')),
    time        TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    UNIQUE (stream_id, version)
) STRICT;

CREATE TRIGGER events_streams AFTER INSERT ON events BEGIN
    INSERT INTO streams (stream_id, stream_type, version) VALUES (NEW.stream_id, NEW.stream_type, NEW.version)
    ON CONFLICT (stream_id) DO UPDATE SET version = max(version, excluded.version);
END;

-- The folded state of one stream, so that a reader need not start from its first event.
CREATE TABLE snapshots (
    stream_id    TEXT NOT NULL REFERENCES streams (stream_id),
    version      INTEGER NOT NULL,
    state        TEXT NOT NULL CHECK (json_valid(state)),
    reducer_hash TEXT NOT NULL,
    time         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (stream_id, version)
) STRICT;

-- Events that were moved out of the way; positions and versions are never reused.
CREATE TABLE archived_events (
    position    INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    stream_id   TEXT NOT NULL,
    stream_type TEXT NOT NULL,
    version     INTEGER NOT NULL,
    type        TEXT NOT NULL,
    data        TEXT NOT NULL,
    metadata    TEXT,
    time        TEXT NOT NULL,
    UNIQUE (stream_id, version)
) STRICT;
