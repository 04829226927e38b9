-- The acknowledgement mode of the run that writes here. A run that acknowledges purchases by itself may still sell when
-- nothing is heard from it, so another machine must not replace it after silence alone.

alter table clusters add column ack text not null default 'local' check (ack in ('local', 'postgres'));
comment on column clusters.ack is 'What a purchase waits for in the latest run: local, its disk; postgres, also its transaction here. Another machine replaces a run with local only after it has ended, or on the word of an operator';
comment on column clusters.seen_at is 'The time of the latest report of that run; -infinity when it has ended and all its records are here';
