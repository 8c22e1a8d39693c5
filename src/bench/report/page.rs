//! A report as one self-contained page for browsers.

use super::plots::{Plot, plots};
use super::{Latency, RunReport, say, table};

/// The page.
pub fn page(report: &RunReport) -> String {
    let plan = &report.plan;
    let standbys = say::of(plan.standbys as u64, "standby");
    let title = format!("walhub bench: {standbys}, {}", report.date.get(..10).unwrap_or_default());
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n\
         <h1>{standbys}</h1>\n<p class=\"soft\">{server}<br>{load}{behaviours}</p>\n",
        title = text(&title),
        style = include_str!("page.css"),
        standbys = text(&standbys),
        server = text(&plan.server),
        load = text(&plan.load),
        behaviours =
            plan.behaviours.iter().map(|line| format!("<br>{}", text(line))).collect::<String>(),
    );
    html += &verdict(report);
    html += &latencies(report);
    for plot in plots(report) {
        html += &figure(&plot);
    }
    html += &figures(report);
    html += &facts(report);
    html += "</body>\n</html>\n";
    html
}

fn verdict(report: &RunReport) -> String {
    let class = if report.verdict.is_good() { "verdict" } else { "verdict bad" };
    let lines = table::verdict(report);
    let mut html = format!("<div class=\"{class}\">\n");
    for (n, line) in lines.iter().enumerate() {
        html += &match n {
            0 => format!("<p><strong>{}</strong></p>\n", text(line)),
            _ => format!("<p>{}</p>\n", text(line)),
        };
    }
    html + "</div>\n"
}

fn latencies(report: &RunReport) -> String {
    let results = &report.results;
    let mut rows: Vec<(&str, &Latency)> = vec![
        ("first standby", &results.first),
        ("each standby", &results.each),
        ("last standby", &results.last),
    ];
    rows.extend(results.commit.as_ref().map(|commit| ("the committing client", commit)));
    let groups = results.groups.iter().filter(|group| group.name != "good");
    rows.extend(groups.map(|group| (group.name.as_str(), &group.each)));
    rows.retain(|(_, latency)| latency.count > 0);
    if rows.is_empty() {
        return String::new();
    }
    let mut html = "<div class=\"scroll\"><table>\n<tr><th>commit to</th><th>p50</th><th>p90</th>\
                    <th>p99</th><th>p99.9</th><th>p99.99</th><th>max</th></tr>\n"
        .to_owned();
    for (name, latency) in rows {
        let Latency { p50, p90, p99, p999, p9999, max, .. } = *latency;
        let cells = [p50, p90, p99, p999, p9999, max]
            .map(|value| format!("<td>{}</td>", text(&say::nanos(value))));
        html += &format!("<tr><td>{}</td>{}</tr>\n", text(name), cells.concat());
    }
    html + "</table></div>\n"
}

fn figure(plot: &Plot) -> String {
    // A single line needs no name.
    let lines = plot.legend.iter().filter(|_| plot.legend.len() > 1);
    let legend: String = lines
        .map(|(name, colour)| {
            format!("<span><i style=\"background:{colour}\"></i>{}</span>", text(name))
        })
        .collect();
    format!(
        "<h2>{}</h2>\n<figure>\n<figcaption>{}</figcaption>\n<div class=\"legend\">{legend}</div>\n\
         {}</figure>\n",
        text(plot.title),
        text(&plot.note),
        plot.svg
    )
}

fn figures(report: &RunReport) -> String {
    let rows = table::rows(report);
    format!("<h2>Figures</h2>\n{}", facts_table(rows))
}

fn facts(report: &RunReport) -> String {
    let (plan, machine) = (&report.plan, &report.machine);
    let mut rows = vec![
        ("date", report.date.clone()),
        ("walhub", report.walhub.clone()),
        ("checked", plan.verify.clone()),
        ("replies", plan.replies.clone()),
    ];
    rows.extend([
        ("machine", format!("{}, {}", machine.cpu, say::of(machine.cpus as u64, "CPU"))),
        ("memory", say::bytes(machine.memory)),
        ("kernel", format!("Linux {}, TCP {}", machine.kernel, machine.congestion_control)),
        ("load before", machine.load_average.clone()),
    ]);
    let command = format!("walhub {}", plan.arguments.join(" "));
    format!("<h2>What was run</h2>\n<p><code>{}</code></p>\n{}", text(&command), facts_table(rows))
}

fn facts_table(rows: Vec<(&str, String)>) -> String {
    let rows = rows
        .iter()
        .map(|(name, value)| format!("<tr><td>{}</td><td>{}</td></tr>\n", text(name), text(value)));
    format!("<table class=\"facts\">\n{}</table>\n", rows.collect::<String>())
}

/// Escapes text for HTML.
fn text(raw: &str) -> String {
    let mut escaped = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{FaultReport, fixture};

    #[test]
    fn the_page_needs_nothing_else() {
        let html = page(&fixture::report());
        assert_eq!(html.matches("<svg").count(), 4);
        for outside in ["<script", "<link", "@import", "url(", "src="] {
            assert!(!html.contains(outside), "{outside}");
        }
        // The only address is SVG's namespace.
        assert_eq!(
            html.matches("http").count(),
            html.matches("http://www.w3.org/2000/svg").count()
        );
        assert!(html.contains("A processor &lt;fast&gt;"), "escaped");
        assert!(html.contains("every byte of it verified"));
    }

    #[test]
    fn faults_are_on_top() {
        let mut report = fixture::report();
        report.verdict.faults = 1;
        report.verdict.first_faults = vec![FaultReport {
            standby: 17,
            lsn: "0/3000123".to_owned(),
            text: "byte at 0/3000123 differs: expected 00, received 80".to_owned(),
        }];
        let html = page(&report);
        let place = html.find("standby 17: byte at 0/3000123 differs").unwrap();
        assert!(place < html.find("<table").unwrap() && html.contains("verdict bad"));
    }
}
