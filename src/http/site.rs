//! What a server offers, by its settings and its plan.

use crate::plan::catalogue::Catalogue;

/// What a server offers.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Whether the paths of the shop exist.
    pub has_shop: bool,
    /// The products of the plan, if there is a plan.
    pub catalogue: Option<&'static Catalogue>,
}

impl Default for Site {
    fn default() -> Self {
        Site { has_shop: true, catalogue: None }
    }
}
