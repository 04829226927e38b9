//! The command `stampede migrate`: updates the schema of the database without a server.

use crate::config::fatal::Fatal;
use crate::config::flags::{SETTINGS, argument};
use crate::config::settings::Config;
use crate::postgres::failure::Failure;
use crate::postgres::schema;
use crate::postgres::session::log_in;
use crate::postgres::snapshot::Snapshot;
use crate::system::threads::event_loop;
use clap::Command;

/// The settings of the server that the command takes, by flag.
const FLAGS: &[&str] = &["database-url", "env-file"];
/// A server that has reported to the database in this time may be running, in microseconds.
const ALIVE_US: i64 = 15_000_000;

const ABOUT: &str = "\
Create the schema stampede in the database, or update it to this version. The server does the same at its start, if its \
role may. With this command, the role of the server needs no right to change the schema: run it as the owner of the \
schema, before the first start and before the start of each new version.

Stop the server first. The command refuses to update the schema while a server reports to the database, with exit code 8. \
It does nothing if the schema is up to date.";

/// Returns the definition of `stampede migrate` for the argument parser.
pub fn command() -> Command {
    let settings = SETTINGS.iter().filter(|setting| FLAGS.contains(&setting.flag));
    let command = Command::new("migrate").about("Create or update the schema of the database").long_about(ABOUT);
    settings.fold(command.args_override_self(true), |command, setting| command.arg(argument(setting)))
}

/// Updates the schema of the database in the settings. Returns a line for the operator.
///
/// # Errors
/// [`Fatal::Settings`]: no database is set. [`Fatal::Database`]: a server is running on the database, its schema is newer,
/// it is not reachable, or it refuses a statement.
pub fn migrate(config: &Config) -> Result<String, Fatal> {
    let Some(url) = &config.database else {
        return Err(Fatal::Settings("migrate needs a database; give --database-url".into()));
    };
    let migrated = event_loop()?.block_on(async {
        let snapshot = Snapshot::take(url).await?;
        let now = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
        let now_us: i64 = snapshot.client.query_one(now, &[]).await?.get(0);
        let seen_us = snapshot.owner_row.and_then(|row| row.seen_us);
        let is_alive = seen_us.is_some_and(|seen_us| now_us - seen_us < ALIVE_US);
        drop(snapshot);
        let judge = |_| match is_alive {
            true => Err(Fatal::Database("a server has reported to it in the last 15 s; stop that server first".into())),
            false => Ok(()),
        };
        schema::migrate(&mut log_in(url).await?.client, |owner| judge(owner).map_err(Failure::Final)).await
    });
    match migrated {
        Ok((before, after)) if before == after => Ok(format!("the schema has version {after} already\n")),
        Ok((before, after)) => Ok(format!("the schema was updated from version {before} to {after}\n")),
        Err(Failure::Final(why)) => Err(why),
        Err(Failure::Transient(why)) => Err(Fatal::Database(why.text)),
    }
}
