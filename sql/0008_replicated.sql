-- Runs of which every promise waits for its transaction here and on a synchronous standby.

alter table clusters drop constraint clusters_ack_check,
    add constraint clusters_ack_check check (ack in ('local', 'postgres', 'replicated'));
comment on column clusters.ack is 'What the latest run waits for before it answers: local, its disk; postgres, for a purchase also its transaction here; replicated, for every promise also its transaction here and on a synchronous standby. Another machine replaces a run with local only after it has ended, or on the word of an operator';
