-- eventsource-py 0.1.3: what SQLiteEventStore creates in a new file (see README.md).

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    aggregate_id TEXT NOT NULL,
    aggregate_type TEXT NOT NULL,
    event_type TEXT NOT NULL,
    tenant_id TEXT,
    actor_id TEXT,
    version INTEGER NOT NULL,
    timestamp TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (datetime('now')),
    UNIQUE (aggregate_id, aggregate_type, version)
);

CREATE INDEX idx_events_aggregate_id ON events (aggregate_id);

CREATE INDEX idx_events_aggregate_type ON events (aggregate_type);

CREATE INDEX idx_events_event_type ON events (event_type);

CREATE INDEX idx_events_timestamp ON events (timestamp);

CREATE INDEX idx_events_tenant_id ON events (tenant_id) WHERE tenant_id IS NOT NULL;

CREATE INDEX idx_events_type_tenant_timestamp ON events (aggregate_type, tenant_id, timestamp);

CREATE INDEX idx_events_aggregate_version ON events (aggregate_id, aggregate_type, version);

CREATE TABLE event_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    aggregate_type TEXT NOT NULL,
    tenant_id TEXT,
    event_data TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (datetime('now')),
    published_at TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    status TEXT NOT NULL DEFAULT 'pending',
    CHECK (status IN ('pending', 'published', 'failed'))
);

CREATE INDEX idx_outbox_status_created ON event_outbox (status, created_at) WHERE status = 'pending';

CREATE INDEX idx_outbox_pending ON event_outbox (created_at) WHERE status = 'pending';

CREATE INDEX idx_outbox_event_id ON event_outbox (event_id);

CREATE INDEX idx_outbox_tenant_id ON event_outbox (tenant_id) WHERE tenant_id IS NOT NULL;

CREATE INDEX idx_outbox_failed ON event_outbox (created_at) WHERE status = 'failed';

CREATE INDEX idx_outbox_published_at ON event_outbox (published_at) WHERE status = 'published';

CREATE TABLE projection_checkpoints (
    projection_name TEXT PRIMARY KEY,
    last_event_id TEXT,
    last_event_type TEXT,
    last_processed_at TEXT,
    events_processed INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL DEFAULT (datetime('now')),
    updated_at TEXT NOT NULL DEFAULT (datetime('now'))
);

CREATE INDEX idx_checkpoints_last_processed ON projection_checkpoints (last_processed_at);

CREATE INDEX idx_checkpoints_updated_at ON projection_checkpoints (updated_at);

CREATE TRIGGER trg_checkpoint_updated_at
    AFTER UPDATE ON projection_checkpoints
    FOR EACH ROW
BEGIN
    UPDATE projection_checkpoints
    SET updated_at = datetime('now')
    WHERE projection_name = NEW.projection_name;
END;

CREATE TABLE dead_letter_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    projection_name TEXT NOT NULL,
    event_type TEXT NOT NULL,
    event_data TEXT NOT NULL,
    error_message TEXT NOT NULL,
    error_stacktrace TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    first_failed_at TEXT NOT NULL DEFAULT (datetime('now')),
    last_failed_at TEXT NOT NULL DEFAULT (datetime('now')),
    status TEXT NOT NULL DEFAULT 'failed',
    resolved_at TEXT,
    resolved_by TEXT,
    CHECK (status IN ('failed', 'retrying', 'resolved')),
    UNIQUE (event_id, projection_name)
);

CREATE INDEX idx_dlq_status ON dead_letter_queue (status);

CREATE INDEX idx_dlq_projection_name ON dead_letter_queue (projection_name);

CREATE INDEX idx_dlq_event_id ON dead_letter_queue (event_id);

CREATE INDEX idx_dlq_first_failed_at ON dead_letter_queue (first_failed_at);

CREATE INDEX idx_dlq_projection_status ON dead_letter_queue (projection_name, status);

CREATE INDEX idx_dlq_active_failures ON dead_letter_queue (first_failed_at) WHERE status IN ('failed', 'retrying');

CREATE INDEX idx_dlq_resolved_at ON dead_letter_queue (resolved_at) WHERE status = 'resolved';
