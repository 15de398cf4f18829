//! Curves as SVG, without a library.

use crate::report::{Report, name_of};
use crate::traffic::KINDS;
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 56.0;
const COLOURS: [&str; 5] = ["#1b6ca8", "#c8553d", "#588157", "#8f5fbf", "#777777"];

struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The plots of a report: a file's name and its contents.
pub fn draw_plots(report: &Report) -> Vec<(&'static str, String)> {
    let over_time = |name: &str, value: &dyn Fn(&crate::Point) -> f64| Curve {
        name: name.to_owned(),
        points: report.points.iter().map(|point| (point.at_s as f64, value(point))).collect(),
    };
    let kinds = KINDS
        .iter()
        .enumerate()
        .map(|(at, kind)| over_time(name_of(*kind), &|point| point.bytes_per_s.get(at).copied().unwrap_or(0) as f64));
    let title = |what: &str| format!("{}: {what}", report.scenario);
    let known = Curve { name: "new paths".to_owned(), points: report.curve.clone() };
    let ages = [over_time("mean", &|point| point.age_mean_s), over_time("worst", &|point| point.age_max_s)];
    let wasted = [over_time("wasted probes", &|point| point.wasted_permille)];
    vec![
        ("convergence.svg", draw_chart(&title("share of machines that know, after ms"), &[known])),
        ("bytes.svg", draw_chart(&title("bytes a second of one machine, over seconds"), &kinds.collect::<Vec<_>>())),
        ("age.svg", draw_chart(&title("age of what tables lack in s, over seconds"), &ages)),
        ("false-hits.svg", draw_chart(&title("wasted probes for 1,000 absent paths, over seconds"), &wasted)),
    ]
}

fn draw_chart(title: &str, curves: &[Curve]) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let most = |axis: fn(&(f64, f64)) -> f64| round_up(all().map(axis).fold(0.0, f64::max));
    let (x_max, y_max) = (most(|point| point.0), most(|point| point.1));
    let place = |(x, y): (f64, f64)| {
        let across = MARGIN + x / x_max * (WIDTH - 1.5 * MARGIN);
        (across, HEIGHT - MARGIN / 1.5 - y / y_max * (HEIGHT - 1.5 * MARGIN))
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{MARGIN}\" y=\"18\" font-size=\"13\">{title}</text>\n"
    );
    // Writing to a String cannot fail.
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let ((x, bottom), (left, y)) = (place((x_max * share, 0.0)), place((0.0, y_max * share)));
        let (right, _) = place((x_max, 0.0));
        writeln!(svg, "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#ddd\"/>").unwrap_or_default();
        let (below, beside) = (bottom + 16.0, left - 6.0);
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>",
            format_short(x_max * share)
        )
        .unwrap_or_default();
        writeln!(
            svg,
            "<text x=\"{beside:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            y + 4.0,
            format_short(y_max * share)
        )
        .unwrap_or_default();
    }
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        for (at, point) in curve.points.iter().filter(|point| point.0 >= 0.0).enumerate() {
            let (x, y) = place(*point);
            write!(path, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" }).unwrap_or_default();
        }
        writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>")
            .unwrap_or_default();
    }
    for (at, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let (x, y) = (MARGIN + 8.0 + 118.0 * at as f64, 36.0);
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" fill=\"{colour}\">{}</text>", curve.name).unwrap_or_default();
    }
    svg + "</svg>\n"
}

/// Rounds up to 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let mut scale = 1e-3;
    while scale * 10.0 < value {
        scale *= 10.0;
    }
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * scale).find(|step| *step >= value).unwrap_or(1.0)
}

fn format_short(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.1}M", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.0}k", value / 1e3)
    } else if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!([0.0, 0.7, 1.0, 3.0, 70.0, 1_200.0].map(round_up), [1e-3, 1.0, 1.0, 5.0, 100.0, 2_000.0]);
    }

    #[test]
    fn a_chart_holds_all_points() {
        let curve = Curve { name: "one".to_owned(), points: vec![(0.0, 0.0), (5.0, 2.0), (10.0, 1.0)] };
        let svg = draw_chart("title", &[curve]);
        assert!(svg.contains("title") && svg.contains(">one<") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches('L').count(), 2, "two lines between three points");
    }
}
