# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_stampede_global_optspecs
    string join \n check-config listen= admin-listen= shards= data-dir= items= user-limit= sale-period= reservation-ttl= log-budget= database-url= ack= recover-from= max-connections= steering= drain-delay= drain-timeout= env-file= log-format= h/help V/version
end

function __fish_stampede_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_stampede_global_optspecs) -- $cmd 2>/dev/null
    or return
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

complete -c stampede -n "__fish_stampede_needs_command" -l listen -d 'Where to serve the public; port 0 takes a free one. PORT or APP_PORT set the port alone [env: LISTEN] [default: 0.0.0.0:8080]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l admin-listen -d 'Where to serve operators: /metrics for Prometheus; port 0 takes a free one. APP_METRICS_PORT sets the port alone [env: ADMIN_LISTEN] [default: 127.0.0.1:8081]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l shards -d 'Threads that serve, each pinned to a CPU of its own if there are enough [env: SHARDS] [default: CPUs this process may use]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l data-dir -d 'Where the purchase log lives; one server at a time [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_needs_command" -l items -d 'Stock of each sale; applies from the next sale on [env: ITEMS, APP_ITEM_NUMBER] [default: 10000]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l user-limit -d 'Items that one user may hold and buy in a sale; applies from the next sale on [env: USER_LIMIT, APP_USER_LIMIT] [default: 10]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l sale-period -d 'Length of a sale, in whole seconds; sales begin at multiples of it since 1970, so 1h means on the hour [env: SALE_PERIOD] [default: 1h]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l reservation-ttl -d 'How long a checkout holds its item [env: RESERVATION_TTL] [default: 30s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l log-budget -d 'Disk that the logs may use; of ended sales, refused attempts are removed first and purchases last [env: LOG_BUDGET] [default: 1GiB]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l database-url -d 'PostgreSQL to persist to, like postgres://user@host/name. Or in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: the log alone]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l ack -d 'What a purchase\'s 200 waits for: this machine\'s disk, or Postgres too [env: ACK] [default: local]' -r -f -a "local\t''
postgres\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l recover-from -d 'Which wins if the log and Postgres contradict each other; auto refuses to start then, and takes the sale over from Postgres if the data directory is empty [env: RECOVER_FROM] [default: auto]' -r -f -a "auto\t''
log\t''
postgres\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l max-connections -d 'Connections served at once; more are answered 503 and closed [env: MAX_CONNECTIONS] [default: 16384, or what the descriptor limit allows]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l steering -d 'Which shard gets a new connection: any, by its address and port; or the one on the CPU where it arrived, for cards that spread connections over CPUs themselves [env: STEERING] [default: hash]' -r -f -a "hash\t''
cpu\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l drain-delay -d 'After SIGTERM, how long to go on selling while /readyz says 503 already: until balancers send nobody here [env: DRAIN_DELAY] [default: 0s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l drain-timeout -d 'After that, how long the end may take: requests in flight, the flush, what Postgres lacks; then the process exits, and the log keeps the rest [env: DRAIN_TIMEOUT] [default: 10s]' -r -f
complete -c stampede -n "__fish_stampede_needs_command" -l env-file -d 'Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_needs_command" -l log-format -d 'How log lines on standard error look [env: LOG_FORMAT] [default: text on a terminal, else json]' -r -f -a "text\t''
json\t''"
complete -c stampede -n "__fish_stampede_needs_command" -l check-config -d 'Print the settings in force and exit: 0 if they are good, 2 if not'
complete -c stampede -n "__fish_stampede_needs_command" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_needs_command" -s V -l version -d 'Print version'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "completions" -d 'Print completions of these flags for a shell'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "man" -d 'Print a manual page, for man -l -'
complete -c stampede -n "__fish_stampede_needs_command" -f -a "log" -d 'Read the log of a data directory: verify, dump, add up a sale'
complete -c stampede -n "__fish_stampede_using_subcommand completions" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand man" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -s h -l help -d 'Print help'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -f -a "verify" -d 'Say whether the log is sound, and how far it is in Postgres'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -f -a "dump" -d 'Print the records of the log as JSON, one a line'
complete -c stampede -n "__fish_stampede_using_subcommand log; and not __fish_seen_subcommand_from verify dump sale" -f -a "sale" -d 'Add up a sale, from the log and from Postgres, and compare'
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -l data-dir -d 'Where the purchase log lives; one server at a time [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -l database-url -d 'PostgreSQL to persist to, like postgres://user@host/name. Or in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: the log alone]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -l env-file -d 'Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l sale -d 'Only records of this sale' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l user -d 'Only records of this user' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l item -d 'Only records about this item' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l code -d 'Only records about the hold of this code' -r
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l data-dir -d 'Where the purchase log lives; one server at a time [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l database-url -d 'PostgreSQL to persist to, like postgres://user@host/name. Or in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: the log alone]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -l env-file -d 'Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l data-dir -d 'Where the purchase log lives; one server at a time [env: DATA_DIR] [default: ./data]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l database-url -d 'PostgreSQL to persist to, like postgres://user@host/name. Or in parts: DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSL_MODE, DB_SSL_ROOT_CERT [env: DATABASE_URL] [default: none: the log alone]' -r -f
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -l env-file -d 'Variables, one VARIABLE=value a line, for what neither flags nor the environment set; read anew by an upgrade, as these are not. .env need not exist [env: ENV_FILE] [default: .env]' -r -f -a "(__fish_complete_directories)"
complete -c stampede -n "__fish_stampede_using_subcommand log; and __fish_seen_subcommand_from sale" -s h -l help -d 'Print help (see more with \'--help\')'
