//! Room on the disk: for a backup, and for a VACUUM.

use super::chart::Chart;
use crate::remark::Remark;
use crate::sqlite::sizes::Figures;

const MIB: u64 = 1 << 20;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    Ok(vec![judge(Figures::of(&chart.connection, chart.patient.path))])
}

fn judge(figures: Figures) -> Remark {
    let Figures { main, wal, disk_free, .. } = figures;
    let backup = main + main / 10 + wal;
    let vacuum = 2 * main + wal;
    let free = format!("its file system has {} MiB free", disk_free / MIB);
    if disk_free < backup {
        let evidence = format!(
            "{free}; a copy of the file takes {} MiB, and when the disk is full nothing is written, and not even deleted",
            backup / MIB
        );
        return Remark::danger(evidence, "make room; let backups go to another file system (`target`, docs/BACKUP.md)");
    }
    if disk_free < vacuum {
        let evidence = format!("{free}; a VACUUM takes up to {} MiB beside the file", vacuum / MIB);
        return Remark::advice(evidence, "make room before one is needed");
    }
    Remark::ok(format!("{free}: enough for a copy and for a VACUUM"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remark::Verdict;

    #[test]
    fn room_is_judged_by_what_a_copy_and_a_vacuum_take() {
        let of =
            |disk_free: u64| judge(Figures { main: 100 * MIB, wal: 10 * MIB, free: 0, disk_free: disk_free * MIB });
        assert_eq!(
            [119, 120, 209, 210].map(|free| of(free).verdict),
            [Verdict::Danger, Verdict::Advice, Verdict::Advice, Verdict::Ok]
        );
        assert!(of(50).evidence.contains("50 MiB free; a copy of the file takes 120 MiB"));
    }
}
