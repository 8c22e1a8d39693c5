//! A report as one page.
use super::RunReport;
/// tmp
pub fn page(_: &RunReport) -> String {
    String::new()
}
