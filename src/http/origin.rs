//! Requests from web pages of other origins (CORS): which pages may use the API, and the header lines that tell the
//! browser.
//!
//! A browser sends some requests of any page without asking the server first, and with the page unable to read the
//! answer: `POST` without special fields is one of them. So that such a page cannot reserve items, a `POST` or `DELETE`
//! that comes from another origin is refused, unless `--cors-origin` names that origin. Clients that are not browsers
//! send neither `Sec-Fetch-Site` nor `Origin`, and are not affected. Source: Fetch Standard, "CORS protocol"; W3C Fetch
//! Metadata Request Headers.

use crate::http::head::{Head, Method};

/// The origins of other web pages that may use the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// No other origin.
    #[default]
    None,
    /// These origins, such as `https://shop.example`.
    Listed(Vec<String>),
    /// Every origin.
    Any,
}

impl Origins {
    /// Creates the origins of a setting. The origin `*` stands for every origin.
    pub fn new(list: &[String]) -> Origins {
        match list {
            [] => Origins::None,
            list if list.iter().any(|origin| origin == "*") => Origins::Any,
            list => Origins::Listed(list.to_vec()),
        }
    }

    /// Returns whether a page of `origin` may use the API.
    pub fn allow(&self, origin: Option<&[u8]>) -> bool {
        match self {
            Origins::None => false,
            Origins::Any => true,
            Origins::Listed(list) => list.iter().any(|listed| Some(listed.as_bytes()) == origin),
        }
    }

    /// Returns whether a request may be executed: it comes from the server's own origin, from no web page, or from a page
    /// that may use the API; or it only reads, and the browser hides the answer from the page.
    pub fn admit(&self, head: &Head<'_>) -> bool {
        let changes = matches!(head.method, Method::Post | Method::Delete);
        !changes || !head.is_cross_origin || self.allow(head.origin)
    }

    /// Appends the header lines for the answer to a request with this `Origin`, each behind a line break.
    pub fn write(&self, origin: Option<&[u8]>, lines: &mut Vec<u8>) {
        let allowed = match (self, origin) {
            (Origins::None, _) => return,
            // Also without an `Origin`, because a cache may reuse the answer for a request with one.
            (Origins::Any, _) => &b"*"[..],
            (Origins::Listed(_), origin) => {
                lines.extend_from_slice(b"\r\nvary: origin");
                match origin.filter(|origin| self.allow(Some(origin))) {
                    Some(origin) => origin,
                    None => return,
                }
            }
        };
        lines.extend_from_slice(b"\r\naccess-control-allow-origin: ");
        lines.extend_from_slice(allowed);
        lines.extend_from_slice(b"\r\naccess-control-expose-headers: retry-after, x-request-id");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::parse_head;

    fn admits(origins: &Origins, method: &str, fields: &str) -> bool {
        let text = format!("{method} /checkout HTTP/1.1\r\nHost: api.example:8080\r\n{fields}\r\n");
        origins.admit(&parse_head(text.as_bytes()).unwrap().unwrap())
    }

    #[test]
    fn only_listed_origins_change_anything_from_elsewhere() {
        let listed = Origins::new(&["https://shop.example".into(), "http://localhost:3000".into()]);
        let any = Origins::new(&["https://shop.example".into(), "*".into()]);
        // Fields of the request, and whether it is admitted: without a setting, with the list, with `*`.
        let cases = [
            ("", [true, true, true]),
            ("Sec-Fetch-Site: none\r\n", [true, true, true]),
            ("Sec-Fetch-Site: same-origin\r\nOrigin: http://api.example:8080\r\n", [true, true, true]),
            ("Sec-Fetch-Site: cross-site\r\n", [false, false, true]),
            ("Sec-Fetch-Site: cross-site\r\nOrigin: https://shop.example\r\n", [false, true, true]),
            ("Sec-Fetch-Site: same-site\r\nOrigin: https://other.example\r\n", [false, false, true]),
            ("Sec-Fetch-Site: unheard-of\r\n", [false, false, true]),
            ("Origin: http://api.example:8080\r\n", [true, true, true]),
            ("Origin: https://API.example:8080\r\n", [true, true, true]),
            ("Origin: http://api.example\r\n", [false, false, true]),
            ("Origin: http://localhost:3000\r\n", [false, true, true]),
            ("Origin: http://localhost:30000\r\n", [false, false, true]),
            ("Origin: https://shop.example.evil\r\n", [false, false, true]),
            ("Origin: null\r\n", [false, false, true]),
            ("Origin: https://shop.example\r\nOrigin: https://other.example\r\n", [false, false, true]),
        ];
        for (fields, expected) in cases {
            for method in ["POST", "DELETE"] {
                let admitted = [&Origins::None, &listed, &any].map(|origins| admits(origins, method, fields));
                assert_eq!(admitted, expected, "{method} {fields}");
            }
            assert!(admits(&Origins::None, "GET", fields), "reading is not refused: {fields}");
        }
    }

    #[test]
    fn answers_name_the_origin_of_the_request_if_it_is_allowed() {
        let lines = |origins: &Origins, origin: Option<&str>| {
            let mut lines = Vec::new();
            origins.write(origin.map(str::as_bytes), &mut lines);
            String::from_utf8(lines).unwrap()
        };
        let listed = Origins::new(&["https://shop.example".into()]);
        assert_eq!(lines(&Origins::None, Some("https://shop.example")), "");
        assert_eq!(lines(&listed, None), "\r\nvary: origin");
        assert_eq!(lines(&listed, Some("https://other.example")), "\r\nvary: origin");
        assert!(lines(&listed, Some("https://shop.example")).contains("allow-origin: https://shop.example\r\n"));
        assert!(lines(&Origins::Any, None).contains("allow-origin: *\r\n"));
    }
}
