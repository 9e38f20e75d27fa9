//! The percentile plot, as an SVG without scripts: latency by percentile, with both axes logarithmic.

use hdrhistogram::Histogram;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
/// The extent of the percentile axis, in powers of ten of the distance from 100 %. 5 reaches the 99.999th percentile.
const NINES: f64 = 5.0;

/// Draws histograms of nanoseconds. Each has a name and a colour.
pub(super) fn svg(title: &str, curves: &[(&str, &str, &Histogram<u64>)]) -> String {
    let filled = || curves.iter().filter(|(_, _, times)| !times.is_empty());
    let low = filled().map(|(_, _, times)| times.min()).min().unwrap_or(1_000);
    let high = filled().map(|(_, _, times)| times.max()).max().unwrap_or(1_000_000);
    let (low, high) = ((low.max(1) as f64).log10().floor(), (high as f64).log10().ceil());
    let high = high.max(low + 1.0);
    let x = |nines: f64| LEFT + nines / NINES * (WIDTH - LEFT - RIGHT);
    let y = |nanoseconds: f64| {
        HEIGHT - BOTTOM - (nanoseconds.max(1.0).log10() - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    for (nines, name) in [(0.0, "0"), (1.0, "90"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99"), (5.0, "99.999")] {
        let (x, bottom) = (x(nines), HEIGHT - BOTTOM);
        svg.push_str(&line(x, TOP, x, bottom));
        svg.push_str(&format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{name}</text>\n", bottom + 18.0));
    }
    let (middle, low_edge) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0);
    svg.push_str(&format!("<text x=\"{middle}\" y=\"{low_edge}\" text-anchor=\"middle\">percentile</text>\n"));
    for power in low as i32..=high as i32 {
        let y = y(10_f64.powi(power));
        svg.push_str(&line(LEFT, y, WIDTH - RIGHT, y));
        let name =
            ["1 ns", "10 ns", "100 ns", "1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]
                .get(usize::try_from(power).unwrap_or_default())
                .unwrap_or(&"");
        svg.push_str(&format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\n", LEFT - 8.0, y + 4.0));
    }
    for (number, (name, colour, times)) in filled().enumerate() {
        let mut points = String::new();
        for step in 0..=250 {
            let nines = f64::from(step) * NINES / 250.0;
            let percentile = 100.0 * (1.0 - 10_f64.powf(-nines));
            let time = times.value_at_percentile(percentile) as f64;
            points.push_str(&format!("{:.1},{:.1} ", x(nines), y(time)));
        }
        svg.push_str(&format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{points}\"/>\n"
        ));
        let x = LEFT + number as f64 * 200.0;
        svg.push_str(&format!("<text x=\"{x}\" y=\"40\" fill=\"{colour}\">{}</text>\n", escaped(name)));
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
