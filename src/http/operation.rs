//! The operations of the public API, with every answer that each can give.
//!
//! The request counters and the OpenAPI document are built from these lists.

use crate::http::problem::Problem;
use std::array;
use strum::{EnumCount, VariantArray};

/// Default number of items on a page.
pub const PAGE_ITEMS_DEFAULT: u32 = 50;
/// Maximum number of items on a page.
pub const PAGE_ITEMS_MAX: u32 = 200;

/// Operation that a request selects by its method and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum Operation {
    /// Reserve an item.
    Checkout,
    /// Buy a reserved item.
    Purchase,
    /// Release a reserved item.
    Cancel,
    /// Extend the hold of a reserved item.
    Extend,
    /// Return the current sale and its counts.
    Sale,
    /// List the sales that are known and those that come.
    Sales,
    /// Return a sale that is still known, and its counts.
    OneSale,
    /// List the products of a sale of the plan.
    Products,
    /// Return one product of a sale of the plan.
    Product,
    /// Stream the counts of the sale as they change.
    Events,
    /// List items with their states.
    Items,
    /// Return one item with its state.
    Item,
    /// Return the image of an item.
    Image,
    /// Report that the process answers.
    Live,
    /// Report whether the server sells.
    Ready,
    /// Report the state of the process and of each shard.
    Health,
    /// Return the OpenAPI document.
    Api,
    /// Return a file of the shop.
    Shop,
    /// Returns the methods of a path, or what a web page of another origin may send.
    Options,
    /// Unknown path or method, or a request that is not valid HTTP.
    Unknown,
}

impl Operation {
    /// Returns whether the OpenAPI document has this operation: it has a path of its own, and is for programs.
    pub fn is_described(self) -> bool {
        !matches!(self, Operation::Shop | Operation::Options | Operation::Unknown)
    }

    /// Returns the method and the path of the operation. Both are empty for [`Operation::Unknown`].
    pub fn route(self) -> (&'static str, &'static str) {
        match self {
            Operation::Checkout => ("POST", "/checkout"),
            Operation::Purchase => ("POST", "/purchase"),
            Operation::Cancel => ("DELETE", "/checkout"),
            Operation::Extend => ("POST", "/checkout/extend"),
            Operation::Sale => ("GET", "/sale"),
            Operation::Sales => ("GET", "/sales"),
            Operation::OneSale => ("GET", "/sales/{id}"),
            Operation::Products => ("GET", "/products"),
            Operation::Product => ("GET", "/products/{id}"),
            Operation::Items => ("GET", "/items"),
            Operation::Item => ("GET", "/items/{id}"),
            Operation::Image => ("GET", "/items/{id}/image.svg"),
            Operation::Events => ("GET", "/events"),
            Operation::Live => ("GET", "/livez"),
            Operation::Ready => ("GET", "/readyz"),
            Operation::Health => ("GET", "/health"),
            Operation::Api => ("GET", "/openapi.json"),
            Operation::Shop => ("GET", "/"),
            Operation::Options => ("OPTIONS", "*"),
            Operation::Unknown => ("", ""),
        }
    }

    /// Returns every answer that the operation can give.
    ///
    /// The answers of [`Operation::Unknown`] that concern HTTP itself and the connection limit apply to every request.
    pub fn answers(self) -> Vec<Answer> {
        use Problem::*;
        let of_code = |more: &[Problem]| {
            let refused = [OriginNotAllowed, InvalidCode, CodeUnknown, CodeExpired, CodeUsed, SaleEnded];
            [&refused, more, &[NotReady, Standby, Overdue]].concat()
        };
        let refused: Vec<Problem> = match self {
            Operation::Checkout => of_checkout(),
            Operation::Purchase => of_code(&[InvalidKey]),
            Operation::Cancel => of_code(&[]),
            Operation::Extend => of_code(&[NotExtendable, LogFull]),
            Operation::Sale => vec![NotReady, Standby],
            Operation::Sales => vec![InvalidOffset, InvalidLimit, NotReady, Standby],
            Operation::Products => of_named_sale(&[InvalidOffset, InvalidLimit, NotFound]),
            Operation::Product => of_named_sale(&[NotFound]),
            Operation::Items => of_named_sale(&[InvalidOffset, InvalidLimit, InvalidProduct, NoSuchProduct]),
            Operation::OneSale => vec![NotFound, NotReady, Standby],
            Operation::Item => vec![InvalidSaleId, NotFound, SaleEnded, NotReady, Standby],
            Operation::Image => vec![InvalidSale, NotFound, NotReady, Standby],
            Operation::Events => vec![NotReady, Standby, TooManyConnections],
            Operation::Live | Operation::Ready | Operation::Health | Operation::Api => vec![],
            Operation::Shop | Operation::Options => vec![],
            Operation::Unknown => vec![
                NotFound,
                OnlyGet,
                OnlyPost,
                OnlyPostOrDelete,
                UnknownMethod,
                MalformedLine,
                MalformedField,
                MalformedTarget,
                MalformedHost,
                MalformedLength,
                MalformedCoding,
                MalformedChunk,
                TargetTooLong,
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
            Operation::Cancel | Operation::Options => &[Answer::NoContent],
            Operation::Image | Operation::Shop => &[Answer::Ok, Answer::Unchanged],
            Operation::Ready | Operation::Health => &[Answer::Ok, Answer::Unready],
            Operation::Unknown => &[],
            _ => &[Answer::Ok],
        };
        granted.iter().copied().chain(refused.into_iter().map(Answer::Refused)).collect()
    }
}

/// Returns every refusal of a page of a sale that a client can name.
fn of_named_sale(more: &[Problem]) -> Vec<Problem> {
    use Problem::*;
    [more, &[InvalidSaleId, NoSuchSale, SaleUnnamed, SaleEnded, NotReady, Standby]].concat()
}

/// Returns every refusal of a checkout.
fn of_checkout() -> Vec<Problem> {
    use Problem::*;
    let of_parameters =
        [InvalidUser, InvalidItem, InvalidProduct, InvalidSaleId, InvalidKey, NoSuchItem, NoSuchProduct];
    let of_sale = [NoSuchSale, SaleUnnamed, SaleEnded, NotOpen, Paused];
    let of_stock = [ItemSold, ItemReserved, SoldOut, AllReserved, UserLimit, LogFull];
    [&[OriginNotAllowed], &of_parameters[..], &of_sale, &of_stock, &[NotReady, Standby, Overdue]].concat()
}

/// Answer to a request, without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The requested result.
    Ok,
    /// Success without a body.
    NoContent,
    /// The client already has the current version.
    Unchanged,
    /// The state of a server that does not sell.
    Unready,
    /// A refusal with a problem.
    Refused(Problem),
}

impl Answer {
    /// Number of different answers.
    pub const COUNT: usize = 4 + Problem::COUNT;

    /// Returns the index of the answer in [`Answer::all`].
    pub fn index(self) -> usize {
        match self {
            Answer::Ok => 0,
            Answer::NoContent => 1,
            Answer::Unchanged => 2,
            Answer::Unready => 3,
            Answer::Refused(problem) => 4 + problem as usize,
        }
    }

    /// Returns every answer, in the order of [`Answer::index`].
    pub fn all() -> [Answer; Answer::COUNT] {
        let granted = [Answer::Ok, Answer::NoContent, Answer::Unchanged, Answer::Unready];
        let refused = |at: usize| Answer::Refused(Problem::VARIANTS[at - granted.len()]);
        array::from_fn(|at| granted.get(at).copied().unwrap_or_else(|| refused(at)))
    }

    /// Returns the status code and the reason phrase.
    pub fn status(self) -> &'static str {
        match self {
            Answer::Ok => "200 OK",
            Answer::NoContent => "204 No Content",
            Answer::Unchanged => "304 Not Modified",
            Answer::Unready => "503 Service Unavailable",
            Answer::Refused(problem) => problem.about().status,
        }
    }

    /// Returns the reason of a refusal, for metrics. It is empty for other answers.
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
        assert!(Answer::all().iter().enumerate().all(|(place, answer)| answer.index() == place));
    }

    #[test]
    fn every_answer_belongs_to_an_operation() {
        let answers: Vec<Answer> = Operation::VARIANTS.iter().flat_map(|operation| operation.answers()).collect();
        for answer in Answer::all() {
            assert!(answers.contains(&answer), "{answer:?}");
        }
    }
}
