//! `stampede log …`: what can be asked of the log of a data directory, without a server or beside one.
//!
//! The definitions are here, for `--help`, the manual page and completions; each question is answered in a file of its
//! own.

use crate::config::flags::{SETTINGS, argument};
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, UserId};
use crate::sale::record::{LogEvent, Record};
use clap::{Arg, ArgMatches, Command, value_parser};

/// The settings that matter to whoever reads a log.
const FLAGS: &[&str] = &["data-dir", "database-url", "env-file"];

const READS_ONLY: &str = "Reads only, and takes no lock: a server may be writing meanwhile. Settings are taken from where the server takes them.";

const VERIFY: &str = "\
Read all of the log and say whether it is sound: one line for each stream, and a conclusion.

A stream is one log of one shard in one run of the server (epoch). Its line says how many records it has, in how many \
segments, whether older ones have been removed, how it ends (sealed: a later start has read it; clean; or torn: the last \
flush was under way, and nobody was told of it), and with a database, how far it is there.

Exit code 0: nothing durable is missing, and a start would find the sale as it was left. 6: something durable is lost; \
the last line is what the server would say. 8: the database and the log do not fit together. A database that does not \
answer is told, and is no failure.";

const DUMP: &str = "\
Print the records of the log, one JSON object a line: run by run, shard by shard, purchases before attempts, each in the \
order in which it was written. Each line begins with its time: | sort -s -t, -k1,1 puts all of them in order of time, and leaves the order of the \
log where times are equal.

  time                   when, RFC 3339
  epoch, shard, log      the stream: the run, the shard, purchases or attempts
  seq                    the record's number in its stream, from 1
  sale_id
  event                  sale-opened, taken-over, checkout, released, purchase, refused
  item_id, user_id, code what it is about, if it is about any
  reason                 released: expired, cancelled; refused: item-sold, item-reserved, user-limit
  expires_at             checkout: when the hold ends
  idempotency_key        purchase: the fingerprint of its key, if there was one
  items, user_limit      sale-opened: its terms

Filters are combined: a line has all that they ask for. Exit code 6 if something durable is lost: everything else is \
printed.";

const SALE: &str = "\
Add up a sale from the log: sold, buyers, held, checkouts, refusals. With a database, the same from there, and where the \
two differ.

Exit code 0 if they agree, or if the database only lacks what has not arrived there yet, which is told. 8: they \
contradict each other, and how. 6: the log has lost something durable. 2: nobody knows of such a sale. A database that \
does not answer is told, and is no failure.";

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogCommand {
    /// Is it sound?
    Verify,
    /// What is in it?
    Dump(Filter),
    /// What has a sale come to? The latest one, if none is given.
    Sale(Option<SaleId>),
}

/// Which records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this sale.
    pub sale: Option<SaleId>,
    /// Of this user.
    pub user: Option<UserId>,
    /// About this item.
    pub item: Option<ItemId>,
    /// About the hold of this code.
    pub code: Option<Code>,
}

impl Filter {
    /// Whether a record has all that is asked for.
    pub fn takes(&self, record: &Record) -> bool {
        let (item, user, code) = match record.event {
            LogEvent::SaleOpened { .. } | LogEvent::TakenOver => (None, None, None),
            LogEvent::Refused { item, user, .. } => (Some(item), Some(user), None),
            LogEvent::Checkout { item, user, code, .. }
            | LogEvent::Released { item, user, code, .. }
            | LogEvent::Purchase { item, user, code, .. } => (Some(item), Some(user), Some(code)),
        };
        self.sale.is_none_or(|sale| sale == record.sale)
            && (self.item.is_none() || self.item == item)
            && (self.user.is_none() || self.user == user)
            && (self.code.is_none() || self.code == code)
    }
}

/// The definitions.
pub fn command() -> Command {
    let verify = question("verify", "Say whether the log is sound, and how far it is in Postgres", VERIFY);
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let user = value_parser!(i64).range(0..);
    let dump = question("dump", "Print the records of the log as JSON, one a line", DUMP)
        .arg(option("sale", "SALE", "Only records of this sale").value_parser(value_parser!(u32)))
        .arg(option("user", "USER", "Only records of this user").value_parser(user))
        .arg(option("item", "ITEM", "Only records about this item").value_parser(value_parser!(u32)))
        .arg(option("code", "CODE", "Only records about the hold of this code").value_parser(code));
    let which = Arg::new("sale").value_name("SALE").value_parser(value_parser!(u32));
    let sale = question("sale", "Add up a sale, from the log and from Postgres, and compare", SALE)
        .arg(which.help("Its sale_id [default: the latest in the log]"));
    Command::new("log")
        .about("Read the log of a data directory: verify, dump, add up a sale")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([verify, dump, sale])
}

fn question(name: &'static str, about: &'static str, help: &'static str) -> Command {
    let settings = SETTINGS.iter().filter(|setting| FLAGS.contains(&setting.flag));
    let command = Command::new(name).about(about).long_about(help).after_help(READS_ONLY).args_override_self(true);
    settings.fold(command, |command, setting| command.arg(argument(setting)))
}

fn code(text: &str) -> Result<Code, String> {
    Code::parse(text.as_bytes())
        .ok_or_else(|| "give a code as a checkout answers it: 36 characters in lower case".into())
}

/// What the arguments ask, and where the flags are among them.
pub fn asked_for(arguments: &ArgMatches) -> Option<(LogCommand, &ArgMatches)> {
    let ("log", log) = arguments.subcommand()? else { return None };
    let (name, given) = log.subcommand().expect("it is required");
    let number = |name| given.get_one::<u32>(name).copied();
    let command = match name {
        "verify" => LogCommand::Verify,
        "dump" => LogCommand::Dump(Filter {
            sale: number("sale").map(SaleId),
            user: given.get_one::<i64>("user").copied().map(UserId),
            item: number("item").map(ItemId),
            code: given.get_one::<Code>("code").copied(),
        }),
        _ => LogCommand::Sale(number("sale").map(SaleId)),
    };
    Some((command, given))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::record::ReleaseReason;

    fn asked(line: &str) -> Result<LogCommand, String> {
        let words = line.split(' ');
        let matches = Command::new("stampede").subcommand(command()).try_get_matches_from(words);
        matches.map(|matches| asked_for(&matches).unwrap().0).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_questions() {
        assert_eq!(asked("stampede log verify --data-dir x"), Ok(LogCommand::Verify));
        assert_eq!(asked("stampede log sale"), Ok(LogCommand::Sale(None)));
        assert_eq!(asked("stampede log sale 7"), Ok(LogCommand::Sale(Some(SaleId(7)))));
        let filter = Filter { user: Some(UserId(i64::MAX)), item: Some(ItemId(0)), ..Filter::default() };
        assert_eq!(asked("stampede log dump --user 9223372036854775807 --item 0"), Ok(LogCommand::Dump(filter)));
        for line in ["log dump --user -1", "log dump --code 7", "log dump --sale x", "log sale x", "log", "log grep"] {
            assert!(asked(&format!("stampede {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn filters_are_combined() {
        let code = Code::from_bytes([7; 16]);
        let (item, user, reason) = (ItemId(2), UserId(3), ReleaseReason::Expired);
        let record = |event| Record { sale: SaleId(1), unix_ms: 0, event };
        let released = record(LogEvent::Released { item, user, code, reason });
        let opened = record(LogEvent::SaleOpened { items: 2, user_limit: 3 });
        let (all, other) = (Filter::default(), Code::from_bytes([8; 16]));
        for (filter, takes) in [
            (all.clone(), [true, true]),
            (Filter { sale: Some(SaleId(1)), ..all.clone() }, [true, true]),
            (Filter { sale: Some(SaleId(2)), ..all.clone() }, [false, false]),
            (Filter { user: Some(user), item: Some(item), code: Some(code), sale: Some(SaleId(1)) }, [true, false]),
            (Filter { user: Some(UserId(4)), item: Some(item), ..all.clone() }, [false, false]),
            (Filter { item: Some(ItemId(3)), ..all.clone() }, [false, false]),
            (Filter { code: Some(other), ..all }, [false, false]),
        ] {
            assert_eq!([&released, &opened].map(|record| filter.takes(record)), takes, "{filter:?}");
        }
    }
}
