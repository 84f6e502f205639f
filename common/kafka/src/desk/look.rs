//! Where lanes begin and end on the bus, asked for all of them at once: a thousand partitions one by one take half a minute.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tapedeck_common::bus::{Located, ToLocate};
use tapedeck_common::commit::GapCause;
use tapedeck_common::position::{Position, Span};
use tapedeck_common::time::Timestamp;

use super::{Desk, PATIENCE};
use crate::config::Start;
use crate::ffi::{LogEnd, list_offsets};
use crate::lanes::look_into;

/// Why a look at one lane brought nothing.
#[derive(Debug, Clone)]
pub(super) enum Blank {
    /// Its topic or partition is gone.
    Vanished,
    /// Ask again later.
    Later(String),
    /// No use asking again.
    Refused(String),
}

/// What the brokers say of partitions, by topic and number.
type Offsets = BTreeMap<(String, i32), Result<Position, RDKafkaErrorCode>>;

impl Desk {
    /// Where each of these lanes can go on.
    pub(super) fn look(&self, lanes: Vec<ToLocate>) -> Vec<(ToLocate, Result<Located, Blank>)> {
        let ask = |end| self.ends_of(&lanes, end);
        let asked = ask(LogEnd::First).and_then(|firsts| Ok((firsts, ask(LogEnd::Written)?)));
        let asked = asked.and_then(|(firsts, ends)| Ok((firsts, ends, self.first_since(&lanes)?)));
        let mut topics = BTreeMap::new();
        let one = |lane: ToLocate| {
            let looked = match &asked {
                Ok((firsts, ends, starts)) => self.place(&lane, firsts, ends, starts),
                // It may be for another lane that there is no answer, or since the whole topic is gone.
                Err(text) => {
                    Err(topics.entry(Arc::clone(&lane.topic)).or_insert_with_key(|topic| self.ask_for(topic, text)).clone())
                }
            };
            (lane, looked)
        };
        lanes.into_iter().map(one).collect()
    }

    /// Why there may be no answer for a topic.
    fn ask_for(&self, topic: &str, text: &str) -> Blank {
        let metadata = self.consumer.fetch_metadata(Some(topic), PATIENCE);
        let error = metadata.ok().and_then(|metadata| metadata.topics().first()?.error());
        blank(topic, error.map(RDKafkaErrorCode::from), text)
    }

    fn ends_of(&self, lanes: &[ToLocate], end: LogEnd) -> Result<Offsets, String> {
        let partitions = lanes.iter().map(|lane| (&*lane.topic, lane.lane.partition));
        let listed = list_offsets(self.consumer.client(), partitions, end, PATIENCE).map_err(|(_, text)| text)?;
        let position = |offset: Result<i64, _>| offset.map(|offset| Position::from_i64(offset).unwrap_or_default());
        Ok(listed.into_iter().map(|one| ((one.topic, one.partition), position(one.offset))).collect())
    }

    fn place(&self, lane: &ToLocate, firsts: &Offsets, ends: &Offsets, starts: &Offsets) -> Result<Located, Blank> {
        let place_of_it = (lane.topic.to_string(), lane.lane.partition);
        let of = |offsets: &Offsets| match offsets.get(&place_of_it) {
            Some(Ok(position)) => Ok(*position),
            Some(Err(code)) => Err(blank(&lane.topic, Some(*code), code)),
            None => Err(Blank::Later(format!("topic {}: no answer for partition {}", lane.topic, lane.lane.partition))),
        };
        let low = of(firsts)?;
        let high = of(ends)?.max(low);
        if let Ok(bounds) = Span::new(low, high)
            && self.is_ours(&lane.lane)
        {
            look_into(&self.ours).bounds.insert(lane.lane.clone(), bounds);
        }
        let start = match self.settings.start {
            Start::At(_) if self.start_matters(lane) => match starts.get(&place_of_it) {
                // No event is that young.
                None => high,
                Some(_) => of(starts)?,
            },
            Start::Latest if self.start_matters(lane) => high,
            _ => low,
        };
        Ok(place(lane.log, start, low, high))
    }

    fn start_matters(&self, lane: &ToLocate) -> bool {
        lane.log.is_none() && self.start_counts_for(lane)
    }

    /// The first event since the configured time, for the lanes that begin with it; nothing for those that have none.
    fn first_since(&self, lanes: &[ToLocate]) -> Result<Offsets, String> {
        let Start::At(time) = self.settings.start else { return Ok(Offsets::new()) };
        let failed = |error: KafkaError| error.to_string();
        let list = times_of(lanes.iter().filter(|lane| self.start_matters(lane)), time).map_err(failed)?;
        if list.count() == 0 {
            return Ok(Offsets::new());
        }
        let found = self.consumer.offsets_for_times(list, PATIENCE).map_err(failed)?;
        let one = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            let position = match (element.error(), element.offset()) {
                (Err(error), _) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
                (Ok(()), Offset::Offset(offset)) => Ok(Position::from_i64(offset)?),
                (Ok(()), _) => return None,
            };
            Some(((element.topic().to_owned(), element.partition()), position))
        };
        Ok(found.elements().into_iter().filter_map(one).collect())
    }
}

fn times_of<'l>(lanes: impl Iterator<Item = &'l ToLocate>, time: Timestamp) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for lane in lanes {
        list.add_partition_offset(&lane.topic, lane.lane.partition, Offset::Offset(time.millis_ceil()))?;
    }
    Ok(list)
}

fn blank(topic: &str, code: Option<RDKafkaErrorCode>, error: impl fmt::Display) -> Blank {
    match code {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition) => {
            Blank::Vanished
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            Blank::Refused(format!("topic {topic}: {error}; grant Read and Describe on it"))
        }
        _ => Blank::Later(format!("topic {topic}: {error}")),
    }
}

/// Compares the log's position with what the bus holds.
fn place(log: Option<Position>, start: Position, low: Position, high: Position) -> Located {
    match log {
        None => Located::Start(start.max(low)),
        Some(log) if log > high => Located::Beyond { log, bus_end: high },
        Some(log) => match Span::new(log, low) {
            Ok(lost) if !lost.is_empty() => Located::Gap(lost, GapCause::Retention),
            _ => Located::Continue(log),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_goes_on_where_log_and_bus_agree() {
        let at = Position::new;
        let span = |from, until| Span::new(at(from), at(until)).expect("forward");
        let cases = [
            (None, 0, 0, 9, Located::Start(at(0))),
            (None, 9, 3, 9, Located::Start(at(9))),
            // Retention moved on between the two questions.
            (None, 2, 3, 9, Located::Start(at(3))),
            (Some(5), 0, 3, 9, Located::Continue(at(5))),
            (Some(3), 0, 3, 9, Located::Continue(at(3))),
            (Some(9), 0, 3, 9, Located::Continue(at(9))),
            (Some(2), 0, 3, 9, Located::Gap(span(2, 3), GapCause::Retention)),
            (Some(0), 0, 9, 9, Located::Gap(span(0, 9), GapCause::Retention)),
            (Some(10), 0, 3, 9, Located::Beyond { log: at(10), bus_end: at(9) }),
        ];
        for (log, start, low, high, located) in cases {
            assert_eq!(place(log.map(at), at(start), at(low), at(high)), located, "{log:?} in {low}..{high}");
        }
    }
}
