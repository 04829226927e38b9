-- The patience of one of two servers, so that the other one knows it without having seen its advisory lock.

alter table stampede.clusters add column if not exists patience_ms integer check (patience_ms > 0);
comment on column stampede.clusters.patience_ms is 'The --standby-patience of the latest run, in milliseconds: after so long without a report it promises nothing, and the other server replaces it. Null if it is not one of two';
