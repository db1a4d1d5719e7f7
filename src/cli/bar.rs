//! One line on the terminal that is drawn over itself, where there is one.

use std::io::{IsTerminal, Write};

use super::Context;

const WIDTH: usize = 30;

pub struct Bar {
    is_shown: bool,
    /// Of what is drawn at present.
    width: usize,
}

impl Bar {
    pub fn new(context: &Context) -> Self {
        Self { is_shown: !context.json && std::io::stderr().is_terminal(), width: 0 }
    }

    pub fn is_shown(&self) -> bool {
        self.is_shown
    }

    /// A bar, filled so many hundredths, and what stands behind it.
    pub fn draw(&mut self, percent: usize, told: &str) {
        self.say(&line(percent, told));
    }

    pub fn say(&mut self, line: &str) {
        if self.is_shown {
            let width = line.chars().count();
            eprint!("\r{line}{}", " ".repeat(self.width.saturating_sub(width)));
            let _ = std::io::stderr().flush();
            self.width = width;
        }
    }

    pub fn clear(&mut self) {
        if self.width > 0 {
            eprint!("\r{}\r", " ".repeat(self.width));
            let _ = std::io::stderr().flush();
            self.width = 0;
        }
    }
}

pub fn line(percent: usize, told: &str) -> String {
    let filled = WIDTH * percent.min(100) / 100;
    format!("[{}{}] {percent:>3} %  {told}", "#".repeat(filled), "-".repeat(WIDTH - filled))
}
