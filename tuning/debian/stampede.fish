# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_stampede_global_optspecs
    string join \n check-config listen= admin-listen= admin-host= shards= data-dir= plan= items= user-limit= sale-period= reservation-ttl= extension= receipts= log-budget= database-url= ack= recover-from= standby= standby-heartbeat= standby-patience= keep-sales= keep-attempts= max-connections= max-connections-per-address= idle-timeout= steering= cors-origin= shop= drain-delay= drain-timeout= env-file= log-format= h/help V/version
end

function __fish_stampede_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_stampede_global_optspecs) -- $cmd 2>/dev/null
    or return 0
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_stampede_using_subcommand
    set -l cmd (__fish_stampede_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c stampede -n "__fish_stampede_needs_command" -l listen -d 'Address and port of the public API; port 0 takes a free port. PORT or APP_PORT sets only the port. Not used if systemd passes sockets [env: LISTEN] [default: 0.0.0.0:8080]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l admin-listen -d 'Address and port of the dashboard and of /metrics for Prometheus; port 0 takes a free port. APP_METRICS_PORT sets only the port. This port has no authentication [env: ADMIN_LISTEN] [default: 127.0.0.1:8081]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l admin-host -d 'Host names under which clients may address the admin port, separated by commas, besides IP addresses and localhost. Requests with another name in Host are answered 421 [env: ADMIN_HOST] [default: none: only IP addresses and localhost]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l shards -d 'Number of threads that serve clients. Each thread is pinned to its own CPU if there are enough CPUs [env: SHARDS] [default: the number of CPUs that this process may use]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l data-dir -d 'Directory of the log. It is created if it does not exist, and locked: one server at a time can use it [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_needs_command" -l plan -d 'File with the sales: when each opens and closes, under which terms, and what it sells. It is read at the start and by an upgrade in place, and replaces --items, --user-limit, --sale-period, --reservation-ttl and --extension. stampede plan check explains it [env: PLAN] [default: none: one sale after another, by the five settings that follow]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l items -d 'Number of items in each sale. A change applies from the next sale on [env: ITEMS, APP_ITEM_NUMBER] [default: 10000]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l user-limit -d 'Number of items that one user may hold and have bought together in a sale. A change applies from the next sale on [env: USER_LIMIT, APP_USER_LIMIT] [default: 10]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l sale-period -d 'Length of a sale, in whole seconds. Sales begin at multiples of it since 1970-01-01 UTC: with 1h, on every full hour. It cannot change for an existing data directory [env: SALE_PERIOD] [default: 1h]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l reservation-ttl -d 'Time for which a checkout holds its item. Then the item is available again [env: RESERVATION_TTL] [default: 30s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l extension -d 'Time by which a client can extend its hold once, by POST /checkout/extend; 0s: never [env: EXTENSION] [default: 0s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l receipts -d 'Time after the end of a sale for which repeated requests with its codes and keys still get their answers, and GET /sales/{id} shows it. Each sale that is remembered needs memory for its items [env: RECEIPTS] [default: 1h, or four sale periods if that is shorter]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l log-budget -d 'Disk space for the logs of all shards, at least 1MiB for each shard. When it is used up, the server removes records of ended sales, refused attempts first; if that is not enough, it refuses checkouts [env: LOG_BUDGET] [default: 1GiB]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l database-url -d 'PostgreSQL database to which every record is persisted, such as postgres://user@host/name. It can also be set in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: only the log is written]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l ack -d 'What a 200 waits for. local: the flush to the local disk. postgres: that of a purchase also waits for the commit in Postgres. replicated: those of checkouts, extensions and releases as well, and the commit for a synchronous standby [env: ACK] [default: local]' -r -f -a "local\t''
postgres\t''
replicated\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l recover-from -d 'Which side is used at start if the log and Postgres contradict each other. auto: refuse to start. log or postgres: use that side. If the data directory is empty, auto and postgres restore the sale from Postgres [env: RECOVER_FROM] [default: auto]' -r -f -a "auto\t''
log\t''
postgres\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l standby -d 'Run as one of two servers that share a database: while the other one sells, wait and answer 503; sell in its place when it has stopped or does not report. Set it on both, with --ack replicated or postgres. --standby alone means on [env: STANDBY] [default: off]' -r -f -a "on\t''
off\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l standby-heartbeat -d 'With --standby: time between two reports of the selling server to the database [env: STANDBY_HEARTBEAT] [default: 500ms]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l standby-patience -d 'With --standby: time without a report after which the other server takes over, and the selling server answers 503. At least twice --standby-heartbeat. That of the selling server counts on both [env: STANDBY_PATIENCE] [default: 1500ms]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l keep-sales -d 'Time after which the rows of a sale are dropped from Postgres, such as 400d; 0s: never [env: KEEP_SALES] [default: 0s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l keep-attempts -d 'Time after which the refused checkouts of a sale are dropped from Postgres, such as 30d; 0s: with the sale [env: KEEP_ATTEMPTS] [default: 0s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l max-connections -d 'Number of client connections at once. At this limit the connection that has been idle longest is closed for a new one; if none is idle, the new one is answered 503 and closed [env: MAX_CONNECTIONS] [default: 16384, or fewer if the descriptor limit is lower]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l max-connections-per-address -d 'Number of connections at once from one IPv4 address or one /64 network of IPv6; 0: no limit. Further connections are answered 503 and closed. Behind a proxy all connections have its address: leave it at 0 [env: MAX_CONNECTIONS_PER_ADDRESS] [default: 0]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l idle-timeout -d 'Time after which a connection without a request is closed. Answers state it in the header Keep-Alive. A proxy in front must close its idle connections earlier [env: IDLE_TIMEOUT] [default: 75s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l steering -d 'Which shard gets a new connection. hash: any shard, by address and port. cpu: the shard on the CPU where the connection arrived, for network cards that distribute connections over the CPUs [env: STEERING] [default: hash]' -r -f -a "hash\t''
cpu\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l cors-origin -d 'Origins of web pages that may use the API from a browser, separated by commas, such as https://shop.example; * for every origin [env: CORS_ORIGIN] [default: none: web pages of other origins cannot use the API]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l shop -d 'Whether GET / is a page to buy from [env: SHOP] [default: on]' -r -f -a "on\t''
off\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l drain-delay -d 'After a signal to stop: time for which the server still sells while /readyz already answers 503, so that load balancers stop sending clients [env: DRAIN_DELAY] [default: 0s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l drain-timeout -d 'After the drain delay: maximum time to finish requests in flight, flush the log and persist it in Postgres. Then the process exits, and the log keeps the records that are not persisted [env: DRAIN_TIMEOUT] [default: 10s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l env-file -d 'File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_needs_command" -l log-format -d 'Format of the log lines on standard error [env: LOG_FORMAT] [default: text on a terminal, otherwise json]' -r -f -a "text\t''
json\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l check-config -d 'Print the settings in force and exit: with code 0 if they are valid, with 2 if not'
complete -c stampede -n "__fish_stampede_needs_command" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_needs_command" -s V -l version -d 'Print version'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "plan" -d 'Check a plan of sales, or show what is open and next'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "completions" -d 'Print completions for a shell'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "man" -d 'Print the manual page: stampede man | man -l -'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "log" -d 'Read the log of a data directory: verify it, dump it, or add up a sale'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "migrate" -d 'Create or update the schema of the database'
complete -c stampede -n "__fish_stampede_using_subcommand plan; and not __fish_seen_subcommand_from check show" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand plan; and not __fish_seen_subcommand_from check show" -f -a "check" -d 'Explain a plan, or name its mistakes'
complete -c stampede -n "__fish_stampede_using_subcommand plan; and not __fish_seen_subcommand_from check show" -f -a "show" -d 'Print which sales of a plan are over, open and next'
complete -c stampede -n "__fish_stampede_using_subcommand plan; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand plan; and __fish_seen_subcommand_from show" -l at -d 'Time for which to print the states, such as 2026-12-01T18:00:00+01:00 [default: now]' -r
complete -c stampede -n "__fish_stampede_using_subcommand plan; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand completions" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand man" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -f -a "verify" -d 'Check whether the log is sound, and how much of it is in Postgres'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -f -a "dump" -d 'Print the records of the log as JSON, one per line'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -f -a "sale" -d 'Add up a sale from the log and from Postgres, and compare the two'
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -l data-dir -d 'Directory of the log. It is created if it does not exist, and locked: one server at a time can use it [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -l database-url -d 'PostgreSQL database to which every record is persisted, such as postgres://user@host/name. It can also be set in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: only the log is written]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -l env-file -d 'File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l sale -d 'Only records of this sale' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l user -d 'Only records of this user' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l item -d 'Only records about this item' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l code -d 'Only records about the hold of this code' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l plan -d 'Name the product and the unit of each item, as this plan has them' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l data-dir -d 'Directory of the log. It is created if it does not exist, and locked: one server at a time can use it [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l database-url -d 'PostgreSQL database to which every record is persisted, such as postgres://user@host/name. It can also be set in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: only the log is written]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l env-file -d 'File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l plan -d 'Add up the sold items of each product of this plan' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l data-dir -d 'Directory of the log. It is created if it does not exist, and locked: one server at a time can use it [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l database-url -d 'PostgreSQL database to which every record is persisted, such as postgres://user@host/name. It can also be set in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: only the log is written]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l env-file -d 'File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand migrate" -l database-url -d 'PostgreSQL database to which every record is persisted, such as postgres://user@host/name. It can also be set in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: only the log is written]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand migrate" -l env-file -d 'File with variables, one VARIABLE=value per line. An upgrade in place reads it again. Only .env may be missing. ENV_FILE is read from the environment only [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand migrate" -s h -l help -d 'Print help (see more with \'--help\')'
