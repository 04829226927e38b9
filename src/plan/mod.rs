//! A plan: which sales open when, under which terms, and what they sell. Never here: a file, a clock, or what a client does.
//!
//! Data passes through like this: the text of a TOML file, and of the lists of units that it names, becomes a [`planned_sale`]
//! `SalePlan`, or a list of all its mistakes.
//!
//! In reading order: [`planned_sale`] (what a plan says), [`plan_time`] (times and durations), [`mistakes`] (mistakes with
//! their places), [`toml_keys`] (the keys of one table), [`unit_list`] (lists of units in CSV), [`plan_sequence`] (the sales
//! against each other), [`plan_reader`] (the text of a plan to a `SalePlan`), [`text_table`] (tables in plain text),
//! [`plan_overview`] (the answer of `stampede plan check`), [`plan_moment`] (the answer of `stampede plan show`),
//! [`catalogue`] (the products and units, by their ids).

pub mod catalogue;
pub mod mistakes;
pub mod plan_moment;
pub mod plan_overview;
pub mod plan_reader;
pub mod plan_sequence;
pub mod plan_time;
pub mod planned_sale;
pub mod text_table;
pub mod toml_keys;
pub mod unit_list;
