//! Figures as a table for a person, or as one JSON object.

use serde::Serialize;

/// Repeated measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) runs: usize,
}

impl Figure {
    /// `None` without values.
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { what: what.into(), unit, median, min, max, runs: values.len() })
    }
}

/// All figures, in the order in which they were made.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) groups: Vec<(String, Vec<Figure>)>,
}

impl Report {
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!(
            "kernel {}, {} CPUs; medians, with the least and the most of all runs",
            self.kernel, self.cpus
        )];
        for (title, figures) in &self.groups {
            lines.push(String::new());
            lines.push(title.clone());
            let width = figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
            for figure in figures {
                let digits = if figure.median.abs() < 10.0 { 3 } else { 1 };
                lines.push(format!(
                    "  {:<width$}  {:>10.digits$} {:<6} ({:.digits$} … {:.digits$}, {} runs)",
                    figure.what, figure.median, figure.unit, figure.min, figure.max, figure.runs
                ));
            }
        }
        lines.join("\n")
    }
}

/// Values collected under names, in the order of first use.
#[derive(Default)]
pub(crate) struct Samples(Vec<(String, &'static str, Vec<f64>)>);

impl Samples {
    pub(crate) fn add(&mut self, what: impl Into<String>, unit: &'static str, value: f64) {
        let what = what.into();
        match self.0.iter_mut().find(|(known, ..)| *known == what) {
            Some((.., values)) => values.push(value),
            None => self.0.push((what, unit, vec![value])),
        }
    }

    pub(crate) fn figures(self) -> Vec<Figure> {
        self.0.into_iter().filter_map(|(what, unit, values)| Figure::new(what, unit, values)).collect()
    }
}
