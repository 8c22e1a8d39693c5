//! Which segment file comes before and after another, over the ends of timelines.

use super::Hub;
use crate::wal::{SegmentName, SegmentNo, SegmentSize, TimelineId};
use crate::watermark::Cell;
use std::sync::Arc;

/// The file before this one. It has the name of the timeline to which its last byte belongs.
/// Returns `None` before the first segment.
pub fn segment_before(hub: &Hub, name: SegmentName) -> Option<SegmentName> {
    let no = name.no.previous()?;
    let last = no.end(name.size).saturating_sub(1);
    let history = |tli| hub.read_history(tli).ok().flatten();
    let newest = || history(hub.current_cell()?.tli()).filter(|of| of.contains(name.tli));
    let history = history(name.tli).or_else(newest);
    let tli = history.map_or(name.tli, |history| history.tli_at(last));
    Some(SegmentName { tli, no, ..name })
}

/// The file after this one.
pub fn segment_after(hub: &Hub, name: SegmentName) -> SegmentName {
    let (no, first) = (name.no.next(), name.no.end(name.size));
    let mut cell = hub.cell_of(name.tli);
    while let Some(next) = cell.as_ref().filter(|cell| cell.end() == Some(first))
        && let Some(next) = next.next()
    {
        cell = Some(next);
    }
    let tli = cell.map_or(name.tli, |cell| timeline_in_name(cell, no, name.size));
    SegmentName { tli, no, ..name }
}

/// The timeline in whose name a segment is complete: its own, unless that ends inside the segment.
/// Then it is the one that continues past the segment; those between never filled it.
pub fn timeline_in_name(cell: Arc<Cell>, no: SegmentNo, size: SegmentSize) -> TimelineId {
    let ends_inside = |cell: &Cell| {
        cell.end().is_some_and(|end| end.segment(size) == no && end.segment_offset(size) > 0)
    };
    let mut cell = cell;
    while ends_inside(&cell)
        && let Some(next) = cell.next()
    {
        cell = next;
    }
    cell.tli()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Lsn;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn a_fork_segment_is_the_childs_file() {
        let tli = |n| TimelineId::new(n).unwrap();
        let size = SegmentSize::new(SEGMENT).unwrap();
        let at = |segment: u64, offset: u64| Lsn::new(segment * SEGMENT + offset);
        let cell = |n, start, end| Arc::new(Cell::new(tli(n), start, end));
        // 1 and 2 end inside segment 5, 3 on the boundary after segment 6.
        let cells = [
            cell(1, at(2, 0), at(5, 100)),
            cell(2, at(5, 0), at(5, 200)),
            cell(3, at(5, 0), at(7, 0)),
            cell(4, at(7, 0), at(9, 0)),
        ];
        for pair in cells.windows(2) {
            pair[0].seal(pair[0].durable());
            pair[0].link(Arc::clone(&pair[1]));
        }
        let of =
            |n: usize, no| timeline_in_name(Arc::clone(&cells[n]), SegmentNo::new(no), size).raw();
        assert_eq!(of(0, 4), 1);
        assert_eq!(of(0, 5), 3);
        assert_eq!(of(1, 5), 3);
        assert_eq!(of(2, 5), 3);
        assert_eq!(of(2, 6), 3);
        assert_eq!(of(3, 7), 4);
    }
}
