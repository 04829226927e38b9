//! The shop: a small page at the root, from which people buy. Its files are in the binary, and it uses the public API like
//! any other client.

use crate::plan::planned_sale::SalePlan;
use std::fmt::Write;

/// Largest number of other hosts whose images the page shows, so that the header of each answer stays small.
pub const IMAGE_ORIGINS_MAX: usize = 16;
/// Largest number of characters of such a host, with its port (RFC 1035 §2.3.4).
const HOST_CHARS_MAX: usize = 253 + ":65535".len();

/// Path, content type and content of each file.
const FILES: [(&str, &str, &str); 12] = {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    [
        ("/", "text/html; charset=utf-8", include_str!("shop_files/index.html")),
        ("/shop.css", "text/css; charset=utf-8", include_str!("shop_files/shop.css")),
        ("/shop.svg", "image/svg+xml", include_str!("shop_files/shop.svg")),
        ("/shop.js", SCRIPT, include_str!("shop_files/shop.js")),
        ("/shop/elements.js", SCRIPT, include_str!("shop_files/elements.js")),
        ("/shop/holds.js", SCRIPT, include_str!("shop_files/holds.js")),
        ("/shop/items.js", SCRIPT, include_str!("shop_files/items.js")),
        ("/shop/product.svg", "image/svg+xml", include_str!("shop_files/product.svg")),
        ("/shop/products.js", SCRIPT, include_str!("shop_files/products.js")),
        ("/shop/requests.js", SCRIPT, include_str!("shop_files/requests.js")),
        ("/shop/sales.js", SCRIPT, include_str!("shop_files/sales.js")),
        ("/shop/words.js", SCRIPT, include_str!("shop_files/words.js")),
    ]
};

/// The shop of a server.
#[derive(Debug)]
pub struct Shop {
    files: Vec<ShopFile>,
}

/// A file of the shop.
#[derive(Debug, PartialEq, Eq)]
pub struct ShopFile {
    path: &'static str,
    /// Content type.
    pub kind: &'static str,
    /// Content.
    pub text: &'static str,
    /// Header lines with the policy of the page, its caching and the tag.
    pub headers: String,
    /// Entity tag, in quotes: a checksum of the content and the policy. Browsers keep the policy of the file that they have
    /// when the answer is 304.
    pub tag: String,
}

impl Shop {
    /// Creates the shop of a server that sells by `plan`, or without one.
    pub fn new(plan: Option<&SalePlan>) -> Self {
        let policy = policy(&plan.map(image_origins).unwrap_or_default());
        let file = |(path, kind, text): (_, _, &'static str)| {
            let checksum = crc32c::crc32c_append(crc32c::crc32c(policy.as_bytes()), text.as_bytes());
            let tag = format!("\"{checksum:08x}\"");
            // Each visit asks whether the file has changed, because the next version may have another page.
            let headers = format!("{policy}\r\ncache-control: no-cache\r\netag: {tag}");
            ShopFile { path, kind, text, headers, tag }
        };
        Shop { files: FILES.into_iter().map(file).collect() }
    }

    /// Returns the file at `path`.
    pub fn file(&self, path: &str) -> Option<&ShopFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Returns the header lines that protect the page: no content of other sites except images of the plan, no inline scripts
/// or styles, no embedding in other pages.
fn policy(images: &[&str]) -> String {
    let mut origins = String::new();
    images.iter().for_each(|origin| write!(origins, " {origin}").expect("a string takes all"));
    format!(
        "\r\ncontent-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'{origins}; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\
         \r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer"
    )
}

/// Returns the origins of the images of a plan on other hosts, the first [`IMAGE_ORIGINS_MAX`] of them.
fn image_origins(plan: &SalePlan) -> Vec<&str> {
    let products = plan.sales.iter().flat_map(|sale| &sale.products);
    let mut origins: Vec<&str> = Vec::new();
    for origin in products.filter_map(|product| origin_of(product.image.as_deref()?)) {
        if origins.len() < IMAGE_ORIGINS_MAX && !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    origins
}

/// Returns the origin of an address with a plain host name. Other characters could end the directive of the policy.
fn origin_of(address: &str) -> Option<&str> {
    const SCHEME: &str = "https://";
    let host = address.strip_prefix(SCHEME)?.split(['/', '?', '#']).next()?;
    let (name, port) = host.split_once(':').unwrap_or((host, "443"));
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let is_host = is_name && host.len() <= HOST_CHARS_MAX && port.parse::<u16>().is_ok();
    is_host.then(|| &address[..SCHEME.len() + host.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::operation::{Answer, Operation};
    use crate::http::problem::Problem;
    use crate::plan::mistakes::PlanText;
    use crate::plan::plan_reader::read_plan;
    use std::collections::BTreeSet;

    #[test]
    fn the_policy_names_the_hosts_of_images_and_nothing_else() {
        let product = |number: usize, image: &str| {
            format!("{{ id = \"p{number}\", name = \"P\", quantity = 1, image = \"{image}\" }}, ")
        };
        let shop_with = |images: &[&str]| {
            let products: String = images.iter().enumerate().map(|(number, image)| product(number, image)).collect();
            let text = format!(
                "[[sale]]\nid = 1\nname = \"S\"\nopens = 2026-12-01T00:00:00Z\ncloses = 2026-12-02T00:00:00Z\n\
                 user_limit = 1\nproduct = [{products}]\n"
            );
            Shop::new(Some(&read_plan(&PlanText::new("x.toml", text), &|_| Err("no lists".into())).unwrap()))
        };
        let named = |shop: &Shop| {
            let (_, images) = shop.file("/").unwrap().headers.split_once("img-src 'self'").unwrap();
            images.split(';').next().unwrap().trim().to_owned()
        };
        let hosts =
            shop_with(&["https://a.example/x.jpg?y", "/own.png", "https://a.example/z", "https://b.example:8443"]);
        assert_eq!(named(&hosts), "https://a.example https://b.example:8443");
        let unclear = [
            "https://x;script-src/a",
            "https://user@a.example/",
            "https://*/x",
            "https://[::1]/x",
            "https://a:b/",
            "https:///x",
        ];
        assert_eq!(named(&shop_with(&unclear)), "");
        let many: Vec<String> = (0..40).map(|host| format!("https://{host}.example/x")).collect();
        let many = named(&shop_with(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(many.split(' ').count(), IMAGE_ORIGINS_MAX);
        let (plain, other) = (Shop::new(None), shop_with(&["/own.png"]));
        let tag = |shop: &Shop| shop.file("/").unwrap().tag.clone();
        assert!(named(&plain).is_empty() && tag(&plain) == tag(&other) && tag(&plain) != tag(&hosts));
    }

    #[test]
    fn each_refusal_has_a_sentence_for_buyers() {
        let words = include_str!("shop_files/words.js");
        let tables = words.split_once("// Refusals").unwrap().1.split_once("// End of the refusals").unwrap().0;
        let keys = tables.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(':')).map(|(key, _)| key);
        let sentences: BTreeSet<&str> = keys.map(|key| key.trim_matches('\'')).collect();
        let uses = [Operation::Checkout, Operation::Purchase, Operation::Cancel, Operation::Extend];
        let refused = uses.into_iter().flat_map(Operation::answers).filter_map(|answer| match answer {
            Answer::Refused(problem) => Some(problem),
            _ => None,
        });
        // Any request can get these, the last ones from a proxy or from nothing at all.
        let everywhere = [Problem::TooManyConnections, Problem::TimedOut];
        let slugs = refused.chain(everywhere).map(|problem| problem.about().slug);
        let expected: BTreeSet<&str> = slugs.chain(["too-many-requests", "unreachable"]).collect();
        assert_eq!(sentences, expected);
    }
}
