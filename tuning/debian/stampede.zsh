#compdef stampede

autoload -U is-at-least

_stampede() {
    typeset -A opt_args
    typeset -a _arguments_options
    local ret=1

    if is-at-least 5.2; then
        _arguments_options=(-s -S -C)
    else
        _arguments_options=(-s -C)
    fi

    local context curcontext="$curcontext" state line
    _arguments "${_arguments_options[@]}" : \
'--listen=[Address and port of the public API; port 0 takes a free port. PORT or APP_PORT sets only the port. Not used if systemd passes sockets \[env\: LISTEN\] \[default\: 0.0.0.0\:8080\]]:ADDRESS:PORT:' \
'--admin-listen=[Address and port of the dashboard and of /metrics for Prometheus; port 0 takes a free port. APP_METRICS_PORT sets only the port. This port has no authentication \[env\: ADMIN_LISTEN\] \[default\: 127.0.0.1\:8081\]]:ADDRESS:PORT:' \
'--admin-host=[Host names under which clients may address the admin port, separated by commas, besides IP addresses and localhost. Requests with another name in Host are answered 421 \[env\: ADMIN_HOST\] \[default\: none\: only IP addresses and localhost\]]:NAMES:' \
'--shards=[Number of threads that serve clients. Each thread is pinned to its own CPU if there are enough CPUs \[env\: SHARDS\] \[default\: the number of CPUs that this process may use\]]:NUMBER:' \
'--data-dir=[Directory of the log. It is created if it does not exist, and locked\: one server at a time can use it \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--plan=[File with the sales\: when each opens and closes, under which terms, and what it sells. It is read at the start and by an upgrade in place, and replaces --items, --user-limit, --sale-period, --reservation-ttl and --extension. stampede plan check explains it \[env\: PLAN\] \[default\: none\: one sale after another, by the five settings that follow\]]:FILE:' \
'--items=[Number of items in each sale. A change applies from the next sale on \[env\: ITEMS, APP_ITEM_NUMBER\] \[default\: 10000\]]:NUMBER:' \
'--user-limit=[Number of items that one user may hold and have bought together in a sale. A change applies from the next sale on \[env\: USER_LIMIT, APP_USER_LIMIT\] \[default\: 10\]]:NUMBER:' \
'--sale-period=[Length of a sale, in whole seconds. Sales begin at multiples of it since 1970-01-01 UTC\: with 1h, on every full hour. It cannot change for an existing data directory \[env\: SALE_PERIOD\] \[default\: 1h\]]:DURATION:' \
'--reservation-ttl=[Time for which a checkout holds its item. Then the item is available again \[env\: RESERVATION_TTL\] \[default\: 30s\]]:DURATION:' \
'--extension=[Time by which a client can extend its hold once, by POST /checkout/extend; 0s\: never \[env\: EXTENSION\] \[default\: 0s\]]:DURATION:' \
'--receipts=[Time after the end of a sale for which repeated requests with its codes and keys still get their answers, and GET /sales/{id} shows it. Each sale that is remembered needs memory for its items \[env\: RECEIPTS\] \[default\: 1h, or four sale periods if that is shorter\]]:DURATION:' \
'--log-budget=[Disk space for the logs of all shards, at least 1MiB for each shard. When it is used up, the server removes records of ended sales, refused attempts first; if that is not enough, it refuses checkouts \[env\: LOG_BUDGET\] \[default\: 1GiB\]]:BYTES:' \
'--database-url=[PostgreSQL database to which every record is persisted, such as postgres\://user@host/name. It can also be set in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: only the log is written\]]:URL:' \
'--ack=[What a 200 waits for. local\: the flush to the local disk. postgres\: that of a purchase also waits for the commit in Postgres. replicated\: those of checkouts, extensions and releases as well, and the commit for a synchronous standby \[env\: ACK\] \[default\: local\]]:local|postgres|replicated:(local postgres replicated)' \
'--recover-from=[Which side is used at start if the log and Postgres contradict each other. auto\: refuse to start. log or postgres\: use that side. If the data directory is empty, auto and postgres restore the sale from Postgres \[env\: RECOVER_FROM\] \[default\: auto\]]:auto|log|postgres:(auto log postgres)' \
'--standby=[Run as one of two servers that share a database\: while the other one sells, wait and answer 503; sell in its place when it has stopped or does not report. Set it on both, with --ack replicated or postgres. --standby alone means on \[env\: STANDBY\] \[default\: off\]]::on|off:(on off)' \
'--standby-heartbeat=[With --standby\: time between two reports of the selling server to the database \[env\: STANDBY_HEARTBEAT\] \[default\: 500ms\]]:DURATION:' \
'--standby-patience=[With --standby\: time without a report after which the other server takes over, and the selling server answers 503. At least twice --standby-heartbeat. That of the selling server counts on both \[env\: STANDBY_PATIENCE\] \[default\: 1500ms\]]:DURATION:' \
'--keep-sales=[Time after which the rows of a sale are dropped from Postgres, such as 400d; 0s\: never \[env\: KEEP_SALES\] \[default\: 0s\]]:DURATION:' \
'--keep-attempts=[Time after which the refused checkouts of a sale are dropped from Postgres, such as 30d; 0s\: with the sale \[env\: KEEP_ATTEMPTS\] \[default\: 0s\]]:DURATION:' \
'--max-connections=[Number of client connections at once. At this limit the connection that has been idle longest is closed for a new one; if none is idle, the new one is answered 503 and closed \[env\: MAX_CONNECTIONS\] \[default\: 16384, or fewer if the descriptor limit is lower\]]:NUMBER:' \
'--max-connections-per-address=[Number of connections at once from one IPv4 address or one /64 network of IPv6; 0\: no limit. Further connections are answered 503 and closed. Behind a proxy all connections have its address\: leave it at 0 \[env\: MAX_CONNECTIONS_PER_ADDRESS\] \[default\: 0\]]:NUMBER:' \
'--idle-timeout=[Time after which a connection without a request is closed. Answers state it in the header Keep-Alive. A proxy in front must close its idle connections earlier \[env\: IDLE_TIMEOUT\] \[default\: 75s\]]:DURATION:' \
'--steering=[Which shard gets a new connection. hash\: any shard, by address and port. cpu\: the shard on the CPU where the connection arrived, for network cards that distribute connections over the CPUs \[env\: STEERING\] \[default\: hash\]]:hash|cpu:(hash cpu)' \
'--cors-origin=[Origins of web pages that may use the API from a browser, separated by commas, such as https\://shop.example; * for every origin \[env\: CORS_ORIGIN\] \[default\: none\: web pages of other origins cannot use the API\]]:ORIGINS:' \
'--shop=[Whether GET / is a page to buy from \[env\: SHOP\] \[default\: on\]]::on|off:(on off)' \
'--drain-delay=[After a signal to stop\: time for which the server still sells while /readyz already answers 503, so that load balancers stop sending clients \[env\: DRAIN_DELAY\] \[default\: 0s\]]:DURATION:' \
'--drain-timeout=[After the drain delay\: maximum time to finish requests in flight, flush the log and persist it in Postgres. Then the process exits, and the log keeps the records that are not persisted \[env\: DRAIN_TIMEOUT\] \[default\: 10s\]]:DURATION:' \
'--env-file=[File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'--log-format=[Format of the log lines on standard error \[env\: LOG_FORMAT\] \[default\: text on a terminal, otherwise json\]]:text|json:(text json)' \
'--check-config[Print the settings in force and exit\: with code 0 if they are valid, with 2 if not]' \
'-h[Print help]' \
'--help[Print help]' \
'-V[Print version]' \
'--version[Print version]' \
":: :_stampede_commands" \
"*::: :->stampede" \
&& ret=0
    case $state in
    (stampede)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:stampede-command-$line[1]:"
        case $line[1] in
            (plan)
_arguments "${_arguments_options[@]}" : \
'-h[Print help]' \
'--help[Print help]' \
":: :_stampede__subcmd__plan_commands" \
"*::: :->plan" \
&& ret=0

    case $state in
    (plan)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:stampede-plan-command-$line[1]:"
        case $line[1] in
            (check)
_arguments "${_arguments_options[@]}" : \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':file -- Path of the plan, a TOML file:_files' \
&& ret=0
;;
(show)
_arguments "${_arguments_options[@]}" : \
'--at=[Time for which to print the states, such as 2026-12-01T18\:00\:00+01\:00 \[default\: now\]]:TIME:_default' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':file -- Path of the plan, a TOML file:_files' \
&& ret=0
;;
        esac
    ;;
esac
;;
(completions)
_arguments "${_arguments_options[@]}" : \
'-h[Print help]' \
'--help[Print help]' \
':shell -- Name of the shell:(bash zsh fish)' \
&& ret=0
;;
(man)
_arguments "${_arguments_options[@]}" : \
'-h[Print help]' \
'--help[Print help]' \
&& ret=0
;;
(log)
_arguments "${_arguments_options[@]}" : \
'-h[Print help]' \
'--help[Print help]' \
":: :_stampede__subcmd__log_commands" \
"*::: :->log" \
&& ret=0

    case $state in
    (log)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:stampede-log-command-$line[1]:"
        case $line[1] in
            (verify)
_arguments "${_arguments_options[@]}" : \
'--data-dir=[Directory of the log. It is created if it does not exist, and locked\: one server at a time can use it \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--database-url=[PostgreSQL database to which every record is persisted, such as postgres\://user@host/name. It can also be set in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: only the log is written\]]:URL:' \
'--env-file=[File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(dump)
_arguments "${_arguments_options[@]}" : \
'--sale=[Only records of this sale]:SALE:_default' \
'--user=[Only records of this user]:USER:_default' \
'--item=[Only records about this item]:ITEM:_default' \
'--code=[Only records about the hold of this code]:CODE:_default' \
'--plan=[Name the product and the unit of each item, as this plan has them]:FILE:_default' \
'--data-dir=[Directory of the log. It is created if it does not exist, and locked\: one server at a time can use it \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--database-url=[PostgreSQL database to which every record is persisted, such as postgres\://user@host/name. It can also be set in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: only the log is written\]]:URL:' \
'--env-file=[File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(sale)
_arguments "${_arguments_options[@]}" : \
'--plan=[Add up the sold items of each product of this plan]:FILE:_default' \
'--data-dir=[Directory of the log. It is created if it does not exist, and locked\: one server at a time can use it \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--database-url=[PostgreSQL database to which every record is persisted, such as postgres\://user@host/name. It can also be set in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: only the log is written\]]:URL:' \
'--env-file=[File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'::sale -- Id of the sale \[default\: the latest in the log\]:_default' \
&& ret=0
;;
        esac
    ;;
esac
;;
(migrate)
_arguments "${_arguments_options[@]}" : \
'--database-url=[PostgreSQL database to which every record is persisted, such as postgres\://user@host/name. It can also be set in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: only the log is written\]]:URL:' \
'--env-file=[File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
        esac
    ;;
esac
}

(( $+functions[_stampede_commands] )) ||
_stampede_commands() {
    local commands; commands=(
'plan:Check a plan of sales, or show what is open and next' \
'completions:Print completions for a shell' \
'man:Print the manual page\: stampede man | man -l -' \
'log:Read the log of a data directory\: verify it, dump it, or add up a sale' \
'migrate:Create or update the schema of the database' \
    )
    _describe -t commands 'stampede commands' commands "$@"
}
(( $+functions[_stampede__subcmd__completions_commands] )) ||
_stampede__subcmd__completions_commands() {
    local commands; commands=()
    _describe -t commands 'stampede completions commands' commands "$@"
}
(( $+functions[_stampede__subcmd__log_commands] )) ||
_stampede__subcmd__log_commands() {
    local commands; commands=(
'verify:Check whether the log is sound, and how much of it is in Postgres' \
'dump:Print the records of the log as JSON, one per line' \
'sale:Add up a sale from the log and from Postgres, and compare the two' \
    )
    _describe -t commands 'stampede log commands' commands "$@"
}
(( $+functions[_stampede__subcmd__log__subcmd__dump_commands] )) ||
_stampede__subcmd__log__subcmd__dump_commands() {
    local commands; commands=()
    _describe -t commands 'stampede log dump commands' commands "$@"
}
(( $+functions[_stampede__subcmd__log__subcmd__sale_commands] )) ||
_stampede__subcmd__log__subcmd__sale_commands() {
    local commands; commands=()
    _describe -t commands 'stampede log sale commands' commands "$@"
}
(( $+functions[_stampede__subcmd__log__subcmd__verify_commands] )) ||
_stampede__subcmd__log__subcmd__verify_commands() {
    local commands; commands=()
    _describe -t commands 'stampede log verify commands' commands "$@"
}
(( $+functions[_stampede__subcmd__man_commands] )) ||
_stampede__subcmd__man_commands() {
    local commands; commands=()
    _describe -t commands 'stampede man commands' commands "$@"
}
(( $+functions[_stampede__subcmd__migrate_commands] )) ||
_stampede__subcmd__migrate_commands() {
    local commands; commands=()
    _describe -t commands 'stampede migrate commands' commands "$@"
}
(( $+functions[_stampede__subcmd__plan_commands] )) ||
_stampede__subcmd__plan_commands() {
    local commands; commands=(
'check:Explain a plan, or name its mistakes' \
'show:Print which sales of a plan are over, open and next' \
    )
    _describe -t commands 'stampede plan commands' commands "$@"
}
(( $+functions[_stampede__subcmd__plan__subcmd__check_commands] )) ||
_stampede__subcmd__plan__subcmd__check_commands() {
    local commands; commands=()
    _describe -t commands 'stampede plan check commands' commands "$@"
}
(( $+functions[_stampede__subcmd__plan__subcmd__show_commands] )) ||
_stampede__subcmd__plan__subcmd__show_commands() {
    local commands; commands=()
    _describe -t commands 'stampede plan show commands' commands "$@"
}

if [ "$funcstack[1]" = "_stampede" ]; then
    _stampede "$@"
else
    compdef _stampede stampede
fi
