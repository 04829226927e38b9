-- The idempotency key of a checkout. Rows of version 0.1 have none.

alter table checkouts add column idempotency_key uuid;
comment on column checkouts.idempotency_key is 'Fingerprint of the Idempotency-Key of the checkout, if it was granted and there was one';
