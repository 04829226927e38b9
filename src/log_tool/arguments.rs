//! The command line of `stampede log`: its commands, flags and help texts, for `--help`, the manual page and
//! completions.
//!
//! The commands read the log of a data directory, without a server or beside one. Each command has a file of its own.

use crate::config::flags::{SETTINGS, argument};
use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, UserId};
use crate::sale::record::{LogEvent, Record};
use clap::{Arg, ArgMatches, Command, value_parser};

/// The settings of the server that the commands take, by flag.
const FLAGS: &[&str] = &["data-dir", "database-url", "env-file"];

/// Name of the argument `--plan`. It is not the setting of the server, whose variable has no effect here: the log needs no
/// plan.
const PLAN: &str = "names-of";

const READS_ONLY: &str = "\
The command only reads and takes no lock, so a server may run on the data directory. It takes its settings from the \
same sources as the server.";

/// A command of `stampede log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogCommand {
    /// Check the whole log.
    Verify,
    /// Print the records that match the filter.
    Dump(Filter),
    /// Add up this sale, or the latest one in the log.
    Sale(Option<SaleId>),
}

/// The conditions that a printed record meets, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Sale of the record.
    pub sale: Option<SaleId>,
    /// User of the record.
    pub user: Option<UserId>,
    /// Item of the record.
    pub item: Option<ItemId>,
    /// Code of the record's hold.
    pub code: Option<Code>,
}

impl Filter {
    /// Returns whether a record meets all conditions.
    pub fn takes(&self, record: &Record) -> bool {
        let (item, user, code) = match record.event {
            LogEvent::SaleOpened { .. } | LogEvent::RestoredFromPostgres => (None, None, None),
            LogEvent::Refused { item, user, .. } => (item, Some(user), None),
            LogEvent::Checkout { item, user, code, .. }
            | LogEvent::Extended { item, user, code, .. }
            | LogEvent::Released { item, user, code, .. }
            | LogEvent::Purchase { item, user, code, .. } => (Some(item), Some(user), Some(code)),
        };
        self.sale.is_none_or(|sale| sale == record.sale)
            && (self.item.is_none() || self.item == item)
            && (self.user.is_none() || self.user == user)
            && (self.code.is_none() || self.code == code)
    }
}

/// Returns the definition of `stampede log` for the argument parser.
pub fn command() -> Command {
    let verify = subcommand(
        "verify",
        "Check whether the log is sound, and how much of it is in Postgres",
        include_str!("help/verify.txt"),
    );
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let user = value_parser!(i64).range(0..);
    let dump = subcommand("dump", "Print the records of the log as JSON, one per line", include_str!("help/dump.txt"))
        .arg(option("sale", "SALE", "Only records of this sale").value_parser(value_parser!(u32)))
        .arg(option("user", "USER", "Only records of this user").value_parser(user))
        .arg(option("item", "ITEM", "Only records about this item").value_parser(value_parser!(u32)))
        .arg(option("code", "CODE", "Only records about the hold of this code").value_parser(code))
        .arg(plan("Name the product and the unit of each item, as this plan has them"));
    let which = Arg::new("sale").value_name("SALE").value_parser(value_parser!(u32));
    let sale = subcommand(
        "sale",
        "Add up a sale from the log and from Postgres, and compare the two",
        include_str!("help/sale.txt"),
    )
    .arg(which.help("Id of the sale [default: the latest in the log]"))
    .arg(plan("Add up the sold items of each product of this plan"));
    Command::new("log")
        .about("Read the log of a data directory: verify it, dump it, or add up a sale")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([verify, dump, sale])
}

fn subcommand(name: &'static str, about: &'static str, help: &'static str) -> Command {
    let settings = SETTINGS.iter().filter(|setting| FLAGS.contains(&setting.flag));
    let command =
        Command::new(name).about(about).long_about(help.trim_end()).after_help(READS_ONLY).args_override_self(true);
    settings.fold(command, |command, setting| command.arg(argument(setting)))
}

fn plan(help: &'static str) -> Arg {
    Arg::new(PLAN).long("plan").value_name("FILE").help(help)
}

/// Returns the path of the plan that the arguments of a command name.
pub fn plan_path(given: &ArgMatches) -> Option<&str> {
    given.try_get_one::<String>(PLAN).ok().flatten().map(String::as_str)
}

fn code(text: &str) -> Result<Code, String> {
    Code::parse(text.as_bytes())
        .ok_or_else(|| "give a code as a checkout returns it: 36 characters with hyphens".into())
}

/// Returns the command of `stampede log` and its arguments, or `None` if the arguments have another command or none.
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
    use crate::sale::ids::Terms;
    use crate::sale::record::ReleaseReason;

    fn parse(line: &str) -> Result<LogCommand, String> {
        let words = line.split(' ');
        let matches = Command::new("stampede").subcommand(command()).try_get_matches_from(words);
        matches.map(|matches| asked_for(&matches).unwrap().0).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_questions() {
        assert_eq!(parse("stampede log verify --data-dir x"), Ok(LogCommand::Verify));
        assert_eq!(parse("stampede log sale"), Ok(LogCommand::Sale(None)));
        assert_eq!(parse("stampede log sale 7"), Ok(LogCommand::Sale(Some(SaleId(7)))));
        let filter = Filter { user: Some(UserId(i64::MAX)), item: Some(ItemId(0)), ..Filter::default() };
        assert_eq!(parse("stampede log dump --user 9223372036854775807 --item 0"), Ok(LogCommand::Dump(filter)));
        for line in ["log dump --user -1", "log dump --code 7", "log dump --sale x", "log sale x", "log", "log grep"] {
            assert!(parse(&format!("stampede {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn filters_are_combined() {
        let code = Code::from_bytes([7; 16]);
        let (item, user, reason) = (ItemId(2), UserId(3), ReleaseReason::Expired);
        let record = |event| Record { sale: SaleId(1), unix_ms: 0, event };
        let released = record(LogEvent::Released { item, user, code, reason });
        let (times, products) = (None, Terms::NO_PRODUCTS);
        let opened = record(LogEvent::SaleOpened { items: 2, user_limit: 3, times, products });
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
