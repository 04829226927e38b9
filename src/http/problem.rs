//! Every refusal that a client can receive, with its status code, type, title and detail (RFC 9457).
//!
//! Types are part of the public contract. Titles and details are for people and can change.

use crate::http::bodies::ProblemDetails;
use strum::{EnumCount, VariantArray};

/// Reason of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
#[expect(missing_docs, reason = "`about` has the title of each")]
pub enum Problem {
    ItemSold,
    ItemReserved,
    SoldOut,
    AllReserved,
    NotOpen,
    UserLimit,
    CodeUnknown,
    CodeExpired,
    CodeUsed,
    SaleEnded,
    NotExtendable,
    InvalidUser,
    InvalidItem,
    NoSuchItem,
    InvalidProduct,
    NoSuchProduct,
    InvalidCode,
    InvalidKey,
    InvalidOffset,
    InvalidLimit,
    InvalidSale,
    InvalidSaleId,
    SaleUnnamed,
    NoSuchSale,
    OriginNotAllowed,
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
    LogFull,
    NotReady,
    Standby,
    Paused,
    TooManyConnections,
    Overdue,
}

/// Texts and headers of a refusal.
#[derive(Clone, Copy, Debug)]
pub struct ProblemText {
    /// Status code and reason phrase.
    pub status: &'static str,
    /// Last part of the problem type.
    pub slug: &'static str,
    /// Reason, as a sentence for people.
    pub title: &'static str,
    /// Remedy. Empty if the title is sufficient.
    pub detail: &'static str,
    /// Header lines that only this problem has.
    pub headers: &'static str,
}

impl Problem {
    /// Returns the body of the refusal.
    pub fn details(self) -> ProblemDetails {
        let ProblemText { status, slug, title, detail, .. } = self.about();
        let code = status[..3].parse().expect("a status begins with its code");
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        ProblemDetails { detail, status: code, title, kind: format!("/problems/{slug}") }
    }

    /// Returns the remedy, if a parameter is missing or invalid.
    #[rustfmt::skip]
    fn of_parameter(self) -> Option<&'static str> {
        Some(match self {
            Problem::InvalidUser => "give user_id once, in the query string, as a whole number from 0 to 9223372036854775807; a body is not read",
            Problem::InvalidItem => "give item_id (or id) at most once, in the query string, as a whole number; a body is not read",
            Problem::NoSuchItem => "item_id must be less than items_total of GET /sale",
            Problem::InvalidProduct => "give product_id at most once, in the query string, with 1 to 64 characters, and without item_id; a body is not read",
            Problem::NoSuchProduct => "product_id must be the id of a product of the sale",
            Problem::InvalidCode => "give code once, in the query string, as a UUID of 36 characters; a body is not read",
            Problem::InvalidKey => "send Idempotency-Key at most once, and not empty",
            Problem::InvalidOffset => "give offset at most once, as a whole number from 0 to 4294967295",
            Problem::InvalidLimit => "give limit at most once, as a whole number from 1 to 200",
            Problem::InvalidSale => "give sale at most once, as a whole number from 0 to 4294967295",
            Problem::InvalidSaleId => "give sale_id at most once, in the query string, as a whole number from 0 to 4294967295; a body is not read",
            Problem::SaleUnnamed => "several sales are open: give the sale_id of one that GET /sales lists as open",
            Problem::NoSuchSale => "sale_id must be the id of a sale that GET /sales lists",
            _ => return None,
        })
    }

    /// Returns the texts and headers of the refusal.
    #[rustfmt::skip]
    pub fn about(self) -> ProblemText {
        const CONFLICT: &str = "409 Conflict";
        const BAD: &str = "400 Bad Request";
        let with = |status, slug, title, detail, headers| ProblemText { status, slug, title, detail, headers };
        // The responder sets the value of `retry-after`.
        let unavailable =
            |slug, title, detail| with("503 Service Unavailable", slug, title, detail, "retry-after: 1\r\n");
        let conflict = |slug, title| with(CONFLICT, slug, title, "", "");
        let malformed = |detail| with(BAD, "malformed-request", "The request is not valid HTTP", detail, "");
        let title = "The method is not allowed for this path";
        let not_allowed = |headers| with("405 Method Not Allowed", "method-not-allowed", title, "", headers);
        if let Some(detail) = self.of_parameter() {
            return with(BAD, "invalid-parameter", "A parameter is missing or invalid", detail, "");
        }
        match self {
            Problem::ItemSold => conflict("item-sold", "The item is sold"),
            Problem::ItemReserved => conflict("item-reserved", "The item is reserved"),
            Problem::SoldOut => conflict("sold-out", "Every item is sold"),
            Problem::AllReserved => with(CONFLICT, "all-reserved", "Every item is sold or reserved", "", "retry-after: 1\r\n"),
            Problem::NotOpen => with(CONFLICT, "not-open", "No sale is open", "", "retry-after: 1\r\n"),
            Problem::UserLimit => conflict("user-limit", "The user has reached the item limit"),
            Problem::CodeUnknown => conflict("code-unknown", "No reservation has this code"),
            Problem::CodeExpired => conflict("code-expired", "The reservation has expired or was released"),
            Problem::CodeUsed => conflict("code-used", "The item of this code is already sold"),
            Problem::SaleEnded => conflict("sale-ended", "The sale has ended"),
            Problem::NotExtendable => conflict("not-extendable", "Reservations cannot be extended"),
            // `of_parameter` has these.
            Problem::InvalidUser | Problem::InvalidItem | Problem::NoSuchItem | Problem::InvalidProduct | Problem::NoSuchProduct | Problem::InvalidCode | Problem::InvalidKey | Problem::InvalidOffset | Problem::InvalidLimit | Problem::InvalidSale | Problem::InvalidSaleId | Problem::SaleUnnamed | Problem::NoSuchSale => unreachable!("a parameter is wrong"),
            Problem::OriginNotAllowed => with("403 Forbidden", "origin-not-allowed",
                "The origin of this web page is not allowed", "the operator lists allowed origins with --cors-origin", ""),
            // Not cacheable, because the next sale may have the item.
            Problem::NotFound => with("404 Not Found", "not-found", "No such path, item or sale", "", "cache-control: no-store\r\n"),
            Problem::OnlyGet => not_allowed("allow: GET, HEAD\r\n"),
            Problem::OnlyPost => not_allowed("allow: POST\r\n"),
            Problem::OnlyPostOrDelete => not_allowed("allow: POST, DELETE\r\n"),
            Problem::UnknownMethod => with("501 Not Implemented", "not-implemented", "The method is not implemented", "", ""),
            Problem::MalformedLine => malformed("the request line is invalid, or a line does not end with CR LF"),
            Problem::MalformedField => malformed("a header field is invalid"),
            Problem::MalformedTarget => malformed("the request target is invalid"),
            Problem::MalformedHost => malformed("send one valid Host field"),
            Problem::MalformedLength => malformed("send Content-Length at most once, as decimal digits"),
            Problem::MalformedCoding =>
                malformed("send Transfer-Encoding at most once, without Content-Length, and not in HTTP/1.0"),
            Problem::MalformedChunk => malformed("the chunked body is invalid"),
            Problem::TargetTooLong => with("414 URI Too Long", "uri-too-long",
                "The request line is too long", "send a request line of at most 8 KiB", ""),
            Problem::HeadTooLarge => with("431 Request Header Fields Too Large", "header-too-large",
                "The header of the request is too large", "send at most 16 KiB and at most 64 header fields", ""),
            Problem::BodyTooLarge => with("413 Content Too Large", "body-too-large",
                "The body of the request is too large", "no request needs a body; a body can have at most 64 KiB", ""),
            Problem::UnknownCoding => with("501 Not Implemented", "unknown-coding", "The transfer coding is not supported", "", ""),
            Problem::UnknownExpectation => with("417 Expectation Failed", "unknown-expectation", "The expectation is not supported", "", ""),
            Problem::UnknownVersion =>
                with("505 HTTP Version Not Supported", "unknown-version", "Only HTTP/1.1 and 1.0 are supported", "", ""),
            Problem::TimedOut => with("408 Request Timeout", "request-timeout", "The request timed out", "", ""),
            Problem::LogFull => unavailable("log-full",
                "The log has no space for more reservations; reserved items can still be bought", ""),
            Problem::NotReady => unavailable("not-ready", "The server is starting or stopping", ""),
            Problem::Standby => unavailable("standby", "Another server sells, or may sell",
                "send the request to the server whose /readyz answers 200"),
            Problem::Paused => unavailable("paused", "The sale is paused", "reserved items can still be bought"),
            Problem::TooManyConnections => unavailable("too-many-connections", "The server has too many connections", ""),
            Problem::Overdue => unavailable("overdue", "The server did not answer in time",
                "the request may still take effect: repeat it with the same parameters"),
        }
    }
}
