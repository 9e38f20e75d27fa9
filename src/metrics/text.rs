//! Converts OpenMetrics text to the Prometheus text format 0.0.4, for scrapers that know only that format.

/// Converts OpenMetrics text. OpenMetrics names a family without the suffix of its samples, may state units, and ends
/// with `# EOF`. The Prometheus format names a family like its samples and has neither units nor `# EOF`.
pub(super) fn plain(open: &str) -> String {
    let mut plain = String::with_capacity(open.len() + open.len() / 16);
    // The suffix of a family's samples follows from its type, which comes after its help.
    let mut help = None;
    for line in open.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            push(&mut plain, &[line]);
            continue;
        };
        let mut parts = comment.splitn(3, ' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("HELP"), Some(name), text) => help = Some((name, text.unwrap_or_default())),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                    push(&mut plain, &["# HELP ", name, suffix, " ", text]);
                }
                push(&mut plain, &["# TYPE ", name, suffix, " ", kind]);
            }
            // `# UNIT` and `# EOF` are left out.
            _ => {}
        }
    }
    plain
}

fn push(text: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| text.push_str(part));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_as_their_samples_and_nothing_else_changes() {
        let open = "# HELP a_binds Binds that were granted.\n# TYPE a_binds counter\na_binds_total{x=\"# y\"} 1\n\
                    # HELP a_users Users.\n# TYPE a_users gauge\na_users 2\n\
                    # HELP a_ack_seconds Time.\n# TYPE a_ack_seconds histogram\n# UNIT a_ack_seconds seconds\n\
                    a_ack_seconds_sum 0.0\na_ack_seconds_count 0\na_ack_seconds_bucket{le=\"+Inf\"} 0\n\
                    # HELP a_build What runs.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n# EOF\n";
        let plain_text = "# HELP a_binds_total Binds that were granted.\n# TYPE a_binds_total counter\na_binds_total{x=\"# y\"} 1\n\
                    # HELP a_users Users.\n# TYPE a_users gauge\na_users 2\n\
                    # HELP a_ack_seconds Time.\n# TYPE a_ack_seconds histogram\n\
                    a_ack_seconds_sum 0.0\na_ack_seconds_count 0\na_ack_seconds_bucket{le=\"+Inf\"} 0\n\
                    # HELP a_build_info What runs.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n";
        assert_eq!(plain(open), plain_text);
    }
}
