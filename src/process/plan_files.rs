//! Reads the files of a plan: the plan, and the lists of units beside it.

use crate::config::fatal::Fatal;
use crate::plan::mistakes::{PlanRefused, PlanText};
use crate::plan::plan_reader::read_plan;
use crate::plan::planned_sale::{LoadedPlan, SalePlan};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Maximum size of a plan or of a list of units, in bytes.
pub const PLAN_FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads the plan at `path`, and the lists of units in its folder.
///
/// # Errors
/// [`Fatal::Plan`]: the plan cannot be read, or it has mistakes.
pub fn read(path: &Path) -> Result<SalePlan, Fatal> {
    let name = path.display().to_string();
    let content = content(path).map_err(|why| Fatal::Plan(format!("{name} cannot be read: {why}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let lists = |list: &Path| self::content(&folder.join(list));
    let plan = PlanText::from_bytes(&name, content).map_err(PlanRefused::from);
    plan.and_then(|text| read_plan(&text, &lists)).map_err(|refused| Fatal::Plan(refused.to_string()))
}

/// Reads the plan of this process.
///
/// # Errors
/// [`Fatal::Plan`]: the plan cannot be read, or it has mistakes.
pub fn load(path: &str) -> Result<LoadedPlan, Fatal> {
    read(Path::new(path)).map(|plan| LoadedPlan::keep(path, plan))
}

/// Returns the content of a regular file.
///
/// # Errors
/// Why it cannot be read.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    // Opening a pipe waits for its writer.
    let kind = path.metadata().map_err(|error| error.to_string())?;
    if !kind.is_file() {
        return Err("it is not a file".into());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut content = Vec::new();
    file.take(PLAN_FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    match content.len() as u64 > PLAN_FILE_BYTES_MAX {
        true => Err(format!("it is larger than {} MiB", PLAN_FILE_BYTES_MAX >> 20)),
        false => Ok(content),
    }
}
