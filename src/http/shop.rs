//! The shop: a small page at the root, from which people buy. Its files are in the binary, and it uses the public API like
//! any other client.

use std::sync::LazyLock;

/// Header lines of every file: no content from other sites, no inline scripts or styles, no embedding in other pages.
/// Each visit asks whether the file has changed, because the next version may have another page.
pub const HEADERS: &str = "\r\ncontent-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\
    \r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncache-control: no-cache";

/// A file of the shop.
#[derive(Debug, PartialEq, Eq)]
pub struct ShopFile {
    path: &'static str,
    /// Content type.
    pub kind: &'static str,
    /// Content.
    pub text: &'static str,
    /// Entity tag, in quotes: a checksum of the content.
    pub tag: String,
}

static FILES: LazyLock<[ShopFile; 4]> = LazyLock::new(|| {
    let file = |path, kind, text: &'static str| {
        let tag = format!("\"{:08x}\"", crc32c::crc32c(text.as_bytes()));
        ShopFile { path, kind, text, tag }
    };
    [
        file("/", "text/html; charset=utf-8", include_str!("shop_files/index.html")),
        file("/shop.css", "text/css; charset=utf-8", include_str!("shop_files/shop.css")),
        file("/shop.js", "text/javascript; charset=utf-8", include_str!("shop_files/shop.js")),
        file("/shop.svg", "image/svg+xml", include_str!("shop_files/shop.svg")),
    ]
});

impl ShopFile {
    /// Returns the file at `path`.
    pub fn at(path: &str) -> Option<&'static ShopFile> {
        FILES.iter().find(|file| file.path == path)
    }
}
