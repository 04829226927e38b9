-- Names of items come from the server, which makes them for its answers and for its images, too; a second copy of the
-- rule here could only come to differ. Rows that are there keep their names, which are the same: the rule has not
-- changed. A sale whose catalogue is unfinished goes on where it is.

drop function extend_catalogue(integer);

comment on column sale_items.name is 'Its name, made by the server: the same that it answers';
