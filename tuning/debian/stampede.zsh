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
'--listen=[Where to serve the public; port 0 takes a free one. PORT or APP_PORT set the port alone \[env\: LISTEN\] \[default\: 0.0.0.0\:8080\]]:ADDRESS:PORT:' \
'--admin-listen=[Where to serve operators\: /metrics for Prometheus; port 0 takes a free one. APP_METRICS_PORT sets the port alone \[env\: ADMIN_LISTEN\] \[default\: 127.0.0.1\:8081\]]:ADDRESS:PORT:' \
'--shards=[Threads that serve, each pinned to a CPU of its own if there are enough \[env\: SHARDS\] \[default\: CPUs this process may use\]]:NUMBER:' \
'--data-dir=[Where the purchase log lives; one server at a time \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--items=[Stock of each sale; applies from the next sale on \[env\: ITEMS, APP_ITEM_NUMBER\] \[default\: 10000\]]:NUMBER:' \
'--user-limit=[Items that one user may hold and buy in a sale; applies from the next sale on \[env\: USER_LIMIT, APP_USER_LIMIT\] \[default\: 10\]]:NUMBER:' \
'--sale-period=[Length of a sale, in whole seconds; sales begin at multiples of it since 1970, so 1h means on the hour \[env\: SALE_PERIOD\] \[default\: 1h\]]:DURATION:' \
'--reservation-ttl=[How long a checkout holds its item \[env\: RESERVATION_TTL\] \[default\: 30s\]]:DURATION:' \
'--log-budget=[Disk that the logs may use; of ended sales, refused attempts are removed first and purchases last \[env\: LOG_BUDGET\] \[default\: 1GiB\]]:BYTES:' \
'--database-url=[PostgreSQL to persist to, like postgres\://user@host/name. Or in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: the log alone\]]:URL:' \
'--ack=[What a purchase'\''s 200 waits for\: this machine'\''s disk, or Postgres too \[env\: ACK\] \[default\: local\]]:local|postgres:(local postgres)' \
'--recover-from=[Which wins if the log and Postgres contradict each other; auto refuses to start then, and takes the sale over from Postgres if the data directory is empty \[env\: RECOVER_FROM\] \[default\: auto\]]:auto|log|postgres:(auto log postgres)' \
'--max-connections=[Connections served at once; more are answered 503 and closed \[env\: MAX_CONNECTIONS\] \[default\: 16384, or what the descriptor limit allows\]]:NUMBER:' \
'--steering=[Which shard gets a new connection\: any, by its address and port; or the one on the CPU where it arrived, for cards that spread connections over CPUs themselves \[env\: STEERING\] \[default\: hash\]]:hash|cpu:(hash cpu)' \
'--drain-delay=[After SIGTERM, how long to go on selling while /readyz says 503 already\: until balancers send nobody here \[env\: DRAIN_DELAY\] \[default\: 0s\]]:DURATION:' \
'--drain-timeout=[After that, how long the end may take\: requests in flight, the flush, what Postgres lacks; then the process exits, and the log keeps the rest \[env\: DRAIN_TIMEOUT\] \[default\: 10s\]]:DURATION:' \
'--env-file=[Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'--log-format=[How log lines on standard error look \[env\: LOG_FORMAT\] \[default\: text on a terminal, else json\]]:text|json:(text json)' \
'--check-config[Print the settings in force and exit\: 0 if they are good, 2 if not]' \
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
            (completions)
_arguments "${_arguments_options[@]}" : \
'-h[Print help]' \
'--help[Print help]' \
':shell -- Whose completions:(bash zsh fish)' \
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
'--data-dir=[Where the purchase log lives; one server at a time \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--database-url=[PostgreSQL to persist to, like postgres\://user@host/name. Or in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: the log alone\]]:URL:' \
'--env-file=[Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
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
'--data-dir=[Where the purchase log lives; one server at a time \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--database-url=[PostgreSQL to persist to, like postgres\://user@host/name. Or in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: the log alone\]]:URL:' \
'--env-file=[Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(sale)
_arguments "${_arguments_options[@]}" : \
'--data-dir=[Where the purchase log lives; one server at a time \[env\: DATA_DIR\] \[default\: ./data\]]:PATH:_files -/' \
'--database-url=[PostgreSQL to persist to, like postgres\://user@host/name. Or in parts\: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT \[env\: DATABASE_URL\] \[default\: none\: the log alone\]]:URL:' \
'--env-file=[Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist \[env\: ENV_FILE\] \[default\: .env\]]:PATH:_files -/' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'::sale -- Its sale_id \[default\: the latest in the log\]:_default' \
&& ret=0
;;
        esac
    ;;
esac
;;
        esac
    ;;
esac
}

(( $+functions[_stampede_commands] )) ||
_stampede_commands() {
    local commands; commands=(
'completions:Print completions of these flags for a shell' \
'man:Print a manual page, for man -l -' \
'log:Read the log of a data directory\: verify, dump, add up a sale' \
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
'verify:Say whether the log is sound, and how far it is in Postgres' \
'dump:Print the records of the log as JSON, one a line' \
'sale:Add up a sale, from the log and from Postgres, and compare' \
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

if [ "$funcstack[1]" = "_stampede" ]; then
    _stampede "$@"
else
    compdef _stampede stampede
fi
