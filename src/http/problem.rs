//! Every refusal that a client can meet: its status code, its type, its words (RFC 9457).

use crate::http::bodies::ProblemDetails;
use crate::http::head::Reject;
use strum::{EnumCount, VariantArray};

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
#[expect(missing_docs, reason = "`about` says it in the words of the client")]
pub enum Problem {
    ItemSold,
    ItemReserved,
    UserLimit,
    CodeUnknown,
    CodeExpired,
    CodeUsed,
    SaleEnded,
    InvalidUser,
    InvalidItem,
    NoSuchItem,
    InvalidCode,
    InvalidOffset,
    InvalidLimit,
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
    LogFull,
    NotReady,
    TooManyConnections,
    Overdue,
}

/// What a client is told about a problem.
#[derive(Clone, Copy, Debug)]
pub struct ProblemText {
    /// Code and phrase.
    pub status: &'static str,
    /// The last part of the problem's type.
    pub slug: &'static str,
    /// A sentence for people.
    pub title: &'static str,
    /// What to do, where that helps.
    pub detail: &'static str,
    /// Header lines of its own.
    pub headers: &'static str,
}

impl Problem {
    /// What a client is told, as the body says it.
    pub fn details(self) -> ProblemDetails {
        let ProblemText { status, slug, title, detail, .. } = self.about();
        let code = status[..3].parse().expect("a status begins with its code");
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        ProblemDetails { detail, status: code, title, kind: format!("/problems/{slug}") }
    }

    /// What a client is told.
    pub fn about(self) -> ProblemText {
        const CONFLICT: &str = "409 Conflict";
        const BAD: &str = "400 Bad Request";
        let with = |status, slug, title, detail, headers| ProblemText { status, slug, title, detail, headers };
        let unavailable =
            |slug, title, detail| with("503 Service Unavailable", slug, title, detail, "retry-after: 1\r\n");
        let conflict = |slug, title| with(CONFLICT, slug, title, "", "");
        let invalid = |detail| with(BAD, "invalid-parameter", "A parameter is missing or wrong", detail, "");
        let title = "The path does not accept this method";
        let not_allowed = |headers| with("405 Method Not Allowed", "method-not-allowed", title, "", headers);
        match self {
            Problem::ItemSold => conflict("item-sold", "The item is sold"),
            Problem::ItemReserved => conflict("item-reserved", "Somebody else holds the item"),
            Problem::UserLimit => conflict("user-limit", "The user holds and has bought as many items as one may"),
            Problem::CodeUnknown => conflict("code-unknown", "No reservation has this code"),
            Problem::CodeExpired => conflict("code-expired", "The reservation has expired or was cancelled"),
            Problem::CodeUsed => conflict("code-used", "The item of this code is already bought"),
            Problem::SaleEnded => conflict("sale-ended", "The sale of this code is over"),
            Problem::InvalidUser => invalid("give user_id once, a whole number from 0 to 9223372036854775807"),
            Problem::InvalidItem => invalid("give item_id (or id) once, a whole number"),
            Problem::NoSuchItem => invalid("item_id must be less than items_total, see GET /sale"),
            Problem::InvalidCode => invalid("give code once, a UUID of 36 characters in lower case"),
            Problem::InvalidOffset => invalid("give offset once or not at all, a whole number from 0 to 4294967295"),
            Problem::InvalidLimit => invalid("give limit once or not at all, a whole number from 1 to 200"),
            // The next sale may have it.
            Problem::NotFound => {
                with("404 Not Found", "not-found", "There is nothing here", "", "cache-control: no-store\r\n")
            }
            Problem::OnlyGet => not_allowed("allow: GET, HEAD\r\n"),
            Problem::OnlyPost => not_allowed("allow: POST\r\n"),
            Problem::OnlyPostOrDelete => not_allowed("allow: POST, DELETE\r\n"),
            Problem::Malformed => with(BAD, "malformed-request", "The request is not good HTTP", "", ""),
            Problem::HeadTooLarge => with(
                "431 Request Header Fields Too Large",
                "header-too-large",
                "The request's head is too large",
                "send at most 8 KiB in at most 64 fields",
                "",
            ),
            Problem::BodyTooLarge => with(
                "413 Content Too Large",
                "body-too-large",
                "The request's body is too large",
                "no request needs a body; at most 64 KiB are read",
                "",
            ),
            Problem::UnknownCoding => {
                with("501 Not Implemented", "unknown-coding", "This transfer coding is not known", "", "")
            }
            Problem::UnknownExpectation => {
                with("417 Expectation Failed", "unknown-expectation", "This expectation cannot be met", "", "")
            }
            Problem::UnknownVersion => {
                with("505 HTTP Version Not Supported", "unknown-version", "Speak HTTP/1.1 or HTTP/1.0", "", "")
            }
            Problem::TimedOut => with("408 Request Timeout", "request-timeout", "The request took too long", "", ""),
            Problem::LogFull => {
                let title = "The log is nearly full: held items can be bought, no others reserved";
                unavailable("log-full", title, "")
            }
            Problem::NotReady => unavailable("not-ready", "The server is starting or stopping", ""),
            Problem::TooManyConnections => {
                unavailable("too-many-connections", "The server has too many connections", "")
            }
            Problem::Overdue => {
                let detail = "the request may still take effect: ask again with the same parameters";
                unavailable("overdue", "No answer in time", detail)
            }
        }
    }
}

impl From<Reject> for Problem {
    fn from(reject: Reject) -> Problem {
        match reject {
            Reject::Malformed => Problem::Malformed,
            Reject::HeadTooLarge => Problem::HeadTooLarge,
            Reject::BodyTooLarge => Problem::BodyTooLarge,
            Reject::UnknownCoding => Problem::UnknownCoding,
            Reject::UnknownExpectation => Problem::UnknownExpectation,
            Reject::UnknownVersion => Problem::UnknownVersion,
            Reject::TimedOut => Problem::TimedOut,
        }
    }
}
