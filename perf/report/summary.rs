//! The newest kept result of each row, as one table of targets.

use super::keep::usual_folder;
use super::table::{number, table};
use crate::fault::{During, Outcome};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What is read back of a result.
#[derive(Deserialize)]
struct Kept {
    machine: Machine,
    goals: Vec<Goal>,
}

#[derive(Deserialize)]
struct Machine {
    date: String,
    commit: String,
}

#[derive(Deserialize)]
struct Goal {
    what: String,
    /// JSON has no number for what was not measured.
    measured: Option<f64>,
    must: super::Bound,
    stretch: Option<super::Bound>,
    verdict: super::Verdict,
}

/// A line for every target of these rows that has a result.
pub(crate) fn summary(rows: &[&str], folder: Option<&Path>) -> Outcome<String> {
    let folder = folder.map_or_else(usual_folder, Path::to_owned);
    let mut lines = Vec::new();
    for row in rows {
        let Some(path) = newest(&folder, row) else { continue };
        let text = fs::read(&path).during(path.display())?;
        let kept: Kept = serde_json::from_slice(&text).during(path.display())?;
        for goal in kept.goals {
            lines.push(vec![
                (*row).to_owned(),
                goal.what,
                number(goal.measured.unwrap_or(f64::NAN)),
                goal.must.words(),
                goal.stretch.map_or_else(String::new, super::Bound::words),
                goal.verdict.words().to_owned(),
                format!("{}, {}", kept.machine.date, kept.machine.commit),
            ]);
        }
    }
    let head = ["row", "target", "measured", "must", "stretch", "", "when, of which commit"];
    let mut out = String::new();
    table(&mut out, head.map(str::to_owned).to_vec(), lines);
    Ok(out)
}

/// The result with the latest date in its name.
fn newest(folder: &Path, row: &str) -> Option<PathBuf> {
    // After the date: a row's name may end with another's.
    let of_row = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.get("2000-01-01-".len()..) == Some(&format!("{row}.json"))
    };
    let entries = fs::read_dir(folder).ok()?;
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(of_row).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_result_of_a_row_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let result = |date: &str, measured: &str| {
            format!(
                "{{\"machine\":{{\"date\":\"{date}\",\"commit\":\"abc\"}},\"goals\":[{{\
                 \"what\":\"cost\",\"measured\":{measured},\"must\":{{\"at_most\":7.0}},\
                 \"stretch\":null,\"verdict\":\"must_met\"}}]}}"
            )
        };
        for (name, measured) in [
            ("2026-01-02-live.json", "6.5"),
            ("2026-01-01-live.json", "5.0"),
            ("2026-01-03-not-live.json", "1.0"),
        ] {
            fs::write(folder.path().join(name), result(&name[..10], measured)).unwrap();
        }
        let text = summary(&["live", "nothing"], Some(folder.path())).unwrap();
        assert_eq!(text.trim_end().lines().count(), 3, "{text}");
        assert!(text.contains("| live | cost   | 6.50     | <= 7.00 |"), "{text}");
        assert!(text.contains("2026-01-02, abc"), "{text}");
    }
}
