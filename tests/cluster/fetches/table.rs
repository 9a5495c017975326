//! The report: a table in Markdown, and a plot beside it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use entrepot_test_support::cache;

/// What was counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) side: &'static str,
    pub(super) nodes: usize,
    pub(super) clients: usize,
}

/// Numbers of clients, each with its mean.
type Points = Vec<(usize, f64)>;

/// How often blobs were fetched.
pub(super) struct Table {
    size: usize,
    counts: Vec<(Cell, Vec<usize>)>,
}

impl Table {
    /// A table of blobs of this size.
    pub(super) fn new(size: usize) -> Self {
        Self { size, counts: Vec::new() }
    }

    /// One more blob.
    pub(super) fn add(&mut self, cell: Cell, fetches: usize) {
        match self.counts.iter_mut().find(|(known, _)| *known == cell) {
            Some((_, counts)) => counts.push(fetches),
            None => self.counts.push((cell, vec![fetches])),
        }
    }

    /// All fetches so far.
    pub(super) fn fetches(&self) -> usize {
        self.counts.iter().flat_map(|(_, counts)| counts).sum()
    }

    /// How often each blob of a cell was fetched on the average.
    pub(super) fn cells(&self) -> impl Iterator<Item = (Cell, f64)> {
        self.counts.iter().map(|(cell, counts)| (*cell, counts.iter().sum::<usize>() as f64 / counts.len() as f64))
    }

    /// Writes the report, and says where.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let folder = cache().join("reports");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("fetches.svg"), self.plot())?;
        let file = folder.join("fetches.md");
        std::fs::write(&file, self.text())?;
        Ok(file)
    }

    /// Each value of a key, in the order in which they came.
    fn keys<T: PartialEq>(&self, key: impl Fn(&Cell) -> T) -> Vec<T> {
        let mut keys = Vec::new();
        for (cell, _) in &self.counts {
            if !keys.contains(&key(cell)) {
                keys.push(key(cell));
            }
        }
        keys
    }

    fn mean(&self, cell: Cell) -> Option<f64> {
        self.cells().find(|(known, _)| *known == cell).map(|(_, mean)| mean)
    }

    /// The lines: a side on so many nodes, by the number of clients.
    fn lines(&self) -> Vec<(&'static str, usize, Points)> {
        let mut lines = Vec::new();
        for side in self.keys(|cell| cell.side) {
            for nodes in self.keys(|cell| cell.nodes) {
                let points = self.keys(|cell| cell.clients).into_iter();
                let mean = |clients| Some((clients, self.mean(Cell { side, nodes, clients })?));
                lines.push((side, nodes, points.filter_map(mean).collect()));
            }
        }
        lines
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# How often a cold blob of {} MiB is fetched\n\nMean fetches of one blob from the upstream, by clients \
             that come at once.\n\n|  | nodes |",
            self.size >> 20
        );
        let clients = self.keys(|cell| cell.clients);
        clients.iter().for_each(|clients| write!(text, " {clients} clients |").expect("text can be written to"));
        let _ = write!(text, "\n|---|---:|{}\n", "---:|".repeat(clients.len()));
        for (side, nodes, points) in self.lines() {
            let _ = write!(text, "| {side} | {nodes} |");
            points.iter().for_each(|(_, mean)| write!(text, " {mean:.2} |").expect("text can be written to"));
            text.push('\n');
        }
        text + "\n![fetches by clients](fetches.svg)\n"
    }

    /// Both axes are logarithmic.
    fn plot(&self) -> String {
        let (width, height, left, top) = (560.0, 340.0, 60.0, 30.0);
        const COLOURS: [&str; 2] = ["#1b7f4b", "#b3541e"];
        let most = |values: f64, other: f64| values.max(other);
        let widest = self.counts.iter().map(|(cell, _)| cell.clients as f64).fold(2.0, most);
        let highest = self.cells().map(|(_, mean)| mean).fold(2.0, most);
        let x = |clients: f64| left + width * clients.ln() / widest.ln();
        let y = |mean: f64| top + height - height * mean.max(1.0).ln() / highest.ln();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"440\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"760\" height=\"440\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"18\">Fetches of a cold blob by clients at once (both logarithmic)</text>\n"
        );
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {top} V{} H{}\" fill=\"none\" stroke=\"black\"/>",
            top + height,
            left + width
        );
        for clients in self.keys(|cell| cell.clients) {
            let (at, below) = (x(clients as f64), top + height + 18.0);
            let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{clients}</text>");
        }
        for mean in [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0].into_iter().filter(|mean| *mean <= highest) {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mean}</text>",
                left - 8.0,
                y(mean) + 4.0
            );
        }
        let sides = self.keys(|cell| cell.side);
        for (side, nodes, points) in self.lines() {
            let colour = sides.iter().position(|known| *known == side).map_or("black", |number| COLOURS[number % 2]);
            let path: Vec<_> =
                points.iter().map(|(clients, mean)| format!("{:.1},{:.1}", x(*clients as f64), y(*mean))).collect();
            let (path, dashes) = (path.join(" "), nodes * 2 - 1);
            let _ = writeln!(
                svg,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
                 stroke-dasharray=\"{dashes} {}\"/>",
                nodes - 1
            );
            if let Some((clients, mean)) = points.last() {
                let (at, height) = (x(*clients as f64) + 6.0, y(*mean) + 4.0);
                let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{height:.1}\" fill=\"{colour}\">{side}, {nodes}</text>");
            }
        }
        svg + "</svg>\n"
    }
}

#[test]
fn a_table_has_a_mean_for_each_cell_and_a_plot_a_line_for_each_side_and_number_of_nodes() {
    let mut table = Table::new(1 << 20);
    for (side, nodes, fetches) in [("one", 1, 1), ("one", 2, 1), ("other", 1, 10), ("other", 2, 20)] {
        table.add(Cell { side, nodes, clients: 50 }, fetches);
    }
    table.add(Cell { side: "one", nodes: 1, clients: 50 }, 2);
    assert!(table.text().contains("| one | 1 | 1.50 |\n| one | 2 | 1.00 |\n| other | 1 | 10.00 |"), "{}", table.text());
    assert_eq!(table.plot().matches("<polyline").count(), 4);
    assert_eq!(table.fetches(), 34);
}
