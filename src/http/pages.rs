//! The documents that GET requests ask for, and the parameters of lists.

use crate::http::operation::{PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX};
use crate::http::problem::Problem;
use crate::http::query::{decode_unreserved, number_value, value};
use crate::http::shop::ShopFile;
use crate::http::site::Site;
use crate::plan::plan_reader::PRODUCT_ID_CHARS_MAX;
use crate::sale::ids::{ItemId, SaleId};
use crate::sale::product_ranges::ProductId;
use std::ops::Range;

/// Document that a GET request returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The current sale and its counts.
    Sale,
    /// The sales that are known and those that come.
    Sales(ListPart),
    /// A sale that is still known, and its counts.
    OneSale(SaleId),
    /// Products of a sale of the plan.
    Products(ProductPage),
    /// Items of the sale.
    Items(ItemPage),
    /// A sign that the process answers.
    Live,
    /// Whether the server sells.
    Ready,
    /// The state of the process and of each shard.
    Health,
    /// The OpenAPI document.
    Api,
    /// A file of the shop.
    Shop(&'static ShopFile),
}

/// Document about the products of a sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductPage {
    /// The sale that the client has named.
    pub sale: Option<SaleId>,
    /// The products.
    pub of: ProductChoice,
}

/// The products of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductChoice {
    /// A part of the list.
    Part(ListPart),
    /// One product.
    One(ProductId),
}

/// Document about items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemPage {
    /// A page of items with their states.
    List {
        /// The items of the list.
        of: ItemChoice,
        /// The part of the list.
        part: ListPart,
    },
    /// One item with its state.
    Item {
        /// The item.
        item: ItemId,
        /// The sale that the client has named.
        sale: Option<SaleId>,
    },
    /// The image of an item.
    Image {
        /// The item.
        item: ItemId,
        /// The sale, or `None` for the current one.
        sale: Option<SaleId>,
    },
}

/// The items of a list: by default all of the sale that the pages show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemChoice {
    /// The sale that the client has named. It has an effect only with a plan.
    pub sale: Option<SaleId>,
    /// The product whose items are listed.
    pub product: Option<ProductId>,
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListPart {
    /// First element, from 0.
    pub offset: u32,
    /// Maximum number of elements.
    pub limit: u32,
}

impl ListPart {
    /// Returns the elements of the part of a list with `total` elements. It is empty if the part is beyond the list.
    pub fn of(self, total: u32) -> Range<u32> {
        self.offset.min(total)..self.offset.saturating_add(self.limit).min(total)
    }

    /// Returns the elements of this part.
    pub fn take<T>(self, elements: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        elements.skip(self.offset as usize).take(self.limit as usize)
    }
}

/// Returns the page of sales with these parameters.
///
/// # Errors
/// A parameter is wrong.
pub fn sales(query: &str) -> Result<Page, Problem> {
    list_part(query).map(Page::Sales)
}

/// Returns the page of products with these parameters.
///
/// # Errors
/// A parameter is wrong, or there is no plan.
pub fn products(query: &str, site: Site) -> Result<Page, Problem> {
    let part = list_part(query)?;
    let sale = named_sale(query)?;
    // Without a plan, nothing has a product: an empty list would say that nothing is on sale.
    site.catalogue.ok_or(Problem::NotFound)?;
    Ok(Page::Products(ProductPage { sale, of: ProductChoice::Part(part) }))
}

/// Returns the page of the product with an id that may be percent-encoded.
///
/// # Errors
/// A parameter is wrong, or the plan has no such product.
pub fn product(id: &str, query: &str, site: Site) -> Result<Page, Problem> {
    let sale = named_sale(query)?;
    let product = site.product(decode_unreserved(id).as_bytes()).ok_or(Problem::NotFound)?;
    Ok(Page::Products(ProductPage { sale, of: ProductChoice::One(product) }))
}

/// Returns the page of items with these parameters.
///
/// # Errors
/// A parameter is wrong.
pub fn items(query: &str, site: Site) -> Result<Page, Problem> {
    let part = list_part(query)?;
    let sale = named_sale(query)?;
    let product = match value(query, "product_id", Problem::InvalidProduct)? {
        Some(text) if !(1..=PRODUCT_ID_CHARS_MAX).contains(&text.len()) => return Err(Problem::InvalidProduct),
        Some(text) => Some(site.product(text).ok_or(Problem::NoSuchProduct)?),
        None => None,
    };
    Ok(Page::Items(ItemPage::List { of: ItemChoice { sale, product }, part }))
}

/// Returns the page of an item with these parameters. Without a plan, it has none.
///
/// # Errors
/// A parameter is wrong.
pub fn item(item: ItemId, query: &str, site: Site) -> Result<Page, Problem> {
    let sale = if site.catalogue.is_some() { named_sale(query)? } else { None };
    Ok(Page::Items(ItemPage::Item { item, sale }))
}

/// Returns the page with the image of an item.
///
/// # Errors
/// A parameter is wrong.
pub fn image(item: ItemId, query: &str) -> Result<Page, Problem> {
    let sale = number_value(query, "sale", Problem::InvalidSale)?.map(SaleId);
    Ok(Page::Items(ItemPage::Image { item, sale }))
}

fn named_sale(query: &str) -> Result<Option<SaleId>, Problem> {
    Ok(number_value(query, "sale_id", Problem::InvalidSaleId)?.map(SaleId))
}

fn list_part(query: &str) -> Result<ListPart, Problem> {
    let offset = number_value(query, "offset", Problem::InvalidOffset)?.unwrap_or(0);
    let limit = number_value(query, "limit", Problem::InvalidLimit)?.unwrap_or(PAGE_ITEMS_DEFAULT);
    if (1..=PAGE_ITEMS_MAX).contains(&limit) { Ok(ListPart { offset, limit }) } else { Err(Problem::InvalidLimit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_within_its_list() {
        for (offset, limit, total, part) in [
            (0, 5, 3, 0..3),
            (1, 1, 3, 1..2),
            (3, 9, 3, 3..3),
            (7, 9, 3, 3..3),
            (u32::MAX, 200, u32::MAX, u32::MAX..u32::MAX),
        ] {
            let list = ListPart { offset, limit };
            assert_eq!(list.of(total), part);
            if total < 9 {
                assert_eq!(list.take(0..total).collect::<Vec<_>>(), part.collect::<Vec<_>>());
            }
        }
    }
}
