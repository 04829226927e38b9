//! What can be asked and every answer that there is: what is counted, and what the API's description lists.

use crate::http::problem::Problem;
use std::array;
use strum::{EnumCount, VariantArray};

/// Items on a page, unless the request says otherwise.
pub const ITEMS_SHOWN: u32 = 50;
/// Items on a page, at most.
pub const ITEMS_SHOWN_MAX: u32 = 200;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum Operation {
    /// Reserves an item.
    Checkout,
    /// Buys what is reserved.
    Purchase,
    /// Gives back what is reserved.
    Cancel,
    /// How the sale stands.
    Sale,
    /// The same again whenever it changes.
    Events,
    /// Which items there are, and how they stand.
    Items,
    /// How one item stands.
    Item,
    /// What it looks like.
    Image,
    /// Whether the process is up.
    Live,
    /// Whether it is ready to sell.
    Ready,
    /// Everything about it.
    Health,
    /// What can be asked, and every answer.
    Api,
    /// Nothing that is known, or nothing that is understood.
    Unknown,
}

impl Operation {
    /// Its method and its path.
    pub fn route(self) -> (&'static str, &'static str) {
        match self {
            Operation::Checkout => ("POST", "/checkout"),
            Operation::Purchase => ("POST", "/purchase"),
            Operation::Cancel => ("DELETE", "/checkout"),
            Operation::Sale => ("GET", "/sale"),
            Operation::Items => ("GET", "/items"),
            Operation::Item => ("GET", "/items/{id}"),
            Operation::Image => ("GET", "/items/{id}/image.svg"),
            Operation::Events => ("GET", "/events"),
            Operation::Live => ("GET", "/livez"),
            Operation::Ready => ("GET", "/readyz"),
            Operation::Health => ("GET", "/health"),
            Operation::Api => ("GET", "/openapi.json"),
            Operation::Unknown => ("", ""),
        }
    }

    /// How it can be answered.
    pub fn answers(self) -> Vec<Answer> {
        use Problem::*;
        let refused: &[Problem] = match self {
            Operation::Checkout => {
                &[InvalidUser, InvalidItem, NoSuchItem, ItemSold, ItemReserved, UserLimit, LogFull, NotReady, Overdue]
            }
            Operation::Purchase => &[InvalidCode, CodeUnknown, CodeExpired, CodeUsed, SaleEnded, NotReady, Overdue],
            Operation::Cancel => &[InvalidCode, CodeUnknown, CodeExpired, CodeUsed, SaleEnded, NotReady, Overdue],
            Operation::Sale => &[NotReady],
            Operation::Items => &[InvalidOffset, InvalidLimit, NotReady],
            Operation::Item | Operation::Image => &[NotFound, NotReady],
            Operation::Events => &[NotReady, TooManyConnections],
            Operation::Live | Operation::Ready | Operation::Health | Operation::Api => &[],
            Operation::Unknown => &[
                NotFound,
                OnlyGet,
                OnlyPost,
                OnlyPostOrDelete,
                Malformed,
                HeadTooLarge,
                BodyTooLarge,
                UnknownCoding,
                UnknownExpectation,
                UnknownVersion,
                TimedOut,
                TooManyConnections,
            ],
        };
        let granted: &[Answer] = match self {
            Operation::Cancel => &[Answer::NoContent],
            Operation::Image => &[Answer::Ok, Answer::Unchanged],
            Operation::Ready | Operation::Health => &[Answer::Ok, Answer::Unready],
            Operation::Unknown => &[],
            _ => &[Answer::Ok],
        };
        granted.iter().copied().chain(refused.iter().copied().map(Answer::Refused)).collect()
    }
}

/// What a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was asked for.
    Ok,
    /// It is done, and there is nothing more to say.
    NoContent,
    /// The client has it already.
    Unchanged,
    /// Details, and that it is not ready to sell.
    Unready,
    /// A refusal.
    Refused(Problem),
}

impl Answer {
    /// How many there are.
    pub const COUNT: usize = 4 + Problem::COUNT;

    /// Its place among them.
    pub fn place(self) -> usize {
        match self {
            Answer::Ok => 0,
            Answer::NoContent => 1,
            Answer::Unchanged => 2,
            Answer::Unready => 3,
            Answer::Refused(problem) => 4 + problem as usize,
        }
    }

    /// Every answer, each in its place.
    pub fn all() -> [Answer; Answer::COUNT] {
        array::from_fn(|place| match place {
            0 => Answer::Ok,
            1 => Answer::NoContent,
            2 => Answer::Unchanged,
            3 => Answer::Unready,
            _ => Answer::Refused(Problem::VARIANTS[place - 4]),
        })
    }

    /// Its status code and phrase.
    pub fn status(self) -> &'static str {
        match self {
            Answer::Ok => "200 OK",
            Answer::NoContent => "204 No Content",
            Answer::Unchanged => "304 Not Modified",
            Answer::Unready => "503 Service Unavailable",
            Answer::Refused(problem) => problem.about().status,
        }
    }

    /// Why not; empty if it was not refused.
    pub fn reason(self) -> &'static str {
        match self {
            Answer::Ok | Answer::NoContent | Answer::Unchanged => "",
            Answer::Unready => "not-ready",
            Answer::Refused(problem) => problem.about().slug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_in_its_place() {
        assert!(Answer::all().iter().enumerate().all(|(place, answer)| answer.place() == place));
    }

    #[test]
    fn every_answer_belongs_to_an_operation() {
        let answers: Vec<Answer> = Operation::VARIANTS.iter().flat_map(|operation| operation.answers()).collect();
        for answer in Answer::all() {
            assert!(answers.contains(&answer), "{answer:?}");
        }
    }
}
