//! Where lanes begin and end on the bus, asked for all of them at once: a thousand partitions one by one take half a minute.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tapedeck_common::bus::{Located, ToLocate};
use tapedeck_common::commit::GapCause;
use tapedeck_common::position::{Position, Span};
use tapedeck_common::time::Timestamp;
use tracing::warn;

use super::{Desk, PATIENCE};
use crate::config::Start;
use crate::ffi::{LogEnd, PartitionOffset, committed_epochs, list_offsets};
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

/// Asked in this order: an end that is older than the search by time hides no event from it.
struct Answers {
    firsts: Offsets,
    ends: Offsets,
    starts: Offsets,
}

impl Desk {
    /// Where each of these lanes can go on.
    pub(super) fn look(&self, lanes: Vec<ToLocate>) -> Vec<(ToLocate, Result<Located, Blank>)> {
        let asked = self.ask_for_all(&lanes);
        let mut topics = BTreeMap::new();
        let mut away = false;
        let one = |lane: ToLocate| {
            let looked = match &asked {
                Ok(answers) => self.place(&lane, answers),
                Err(text) => {
                    let of_topic = || self.ask_for_topic(&lane.topic, text, &mut away);
                    Err(topics.entry(Arc::clone(&lane.topic)).or_insert_with(of_topic).clone())
                }
            };
            (lane, looked)
        };
        lanes.into_iter().map(one).collect()
    }

    fn ask_for_all(&self, lanes: &[ToLocate]) -> Result<Answers, String> {
        let firsts = self.ends_of(lanes, LogEnd::First)?;
        let ends = self.ends_of(lanes, LogEnd::Written)?;
        let starts = self.first_since(lanes, &ends)?;
        Ok(Answers { firsts, ends, starts })
    }

    /// The offsets that the group committed bear the leader epoch of the event before them. Where such an offset is the log's position,
    /// the lane looks at that event first: if it is another one, the bus lost its tail since and wrote on.
    pub(super) fn note_epochs(&self, located: &[(ToLocate, Located)]) {
        let mut list = TopicPartitionList::new();
        let mut open = BTreeMap::new();
        for (lane, located) in located {
            let Located::Continue(at) = located else { continue };
            if look_into(&self.ours).epochs.get(&lane.lane).is_none_or(|(position, _)| position != at) {
                list.add_partition(&lane.topic, lane.lane.partition);
                open.insert((lane.topic.to_string(), lane.lane.partition), (&lane.lane, *at));
            }
        }
        if open.is_empty() {
            return;
        }
        let committed = match self.consumer.committed_offsets(list, PATIENCE) {
            Ok(committed) => committed_epochs(&committed),
            Err(error) => {
                warn!(%error, "the group's offsets are not to be had, so nobody looks whether the bus lost its tail meanwhile");
                return;
            }
        };
        let mut ours = look_into(&self.ours);
        for one in committed {
            if let Some((lane, at)) = open.get(&(one.topic, one.partition)).filter(|(_, at)| at.as_i64() == one.offset) {
                ours.epochs.insert((*lane).clone(), (*at, one.epoch));
            }
        }
    }

    /// Why there may be no answer for a topic: the whole of it is gone, or it is another lane for which there is none. Brokers that
    /// do not answer this either are `away`, and are not asked for each further topic.
    fn ask_for_topic(&self, topic: &str, text: &str, away: &mut bool) -> Blank {
        let metadata = if *away { None } else { self.consumer.fetch_metadata(Some(topic), PATIENCE).ok() };
        *away = metadata.is_none();
        let error = metadata.and_then(|metadata| metadata.topics().first()?.error());
        blank(topic, error.map(RDKafkaErrorCode::from), text)
    }

    /// What is no offset counts as no answer.
    fn ends_of(&self, lanes: &[ToLocate], end: LogEnd) -> Result<Offsets, String> {
        let partitions = lanes.iter().map(|lane| (&*lane.topic, lane.lane.partition));
        let listed = list_offsets(self.consumer.client(), partitions, end, PATIENCE).map_err(|(_, text)| text)?;
        let one = |one: PartitionOffset| {
            let position = one.offset.map(Position::from_i64).transpose()?;
            Some(((one.topic, one.partition), position))
        };
        Ok(listed.into_iter().filter_map(one).collect())
    }

    fn place(&self, lane: &ToLocate, answers: &Answers) -> Result<Located, Blank> {
        let of = |offsets: &Offsets| match offsets.get(&(lane.topic.to_string(), lane.lane.partition)) {
            Some(Ok(position)) => Ok(*position),
            Some(Err(code)) => Err(blank(&lane.topic, Some(*code), code)),
            None => Err(Blank::Later(format!("topic {}: no answer for partition {}", lane.topic, lane.lane.partition))),
        };
        let low = of(&answers.firsts)?;
        let high = of(&answers.ends)?.max(low);
        if let Ok(bounds) = Span::new(low, high)
            && self.is_ours(&lane.lane)
        {
            look_into(&self.ours).bounds.insert(lane.lane.clone(), bounds);
        }
        let start = match self.settings.start {
            Start::At(_) if self.start_matters(lane) => of(&answers.starts)?,
            Start::Latest if self.start_matters(lane) => high,
            _ => low,
        };
        Ok(place(lane.log, start, low, high))
    }

    fn start_matters(&self, lane: &ToLocate) -> bool {
        lane.log.is_none() && self.start_counts_for(lane)
    }

    /// The first event since the configured time, for the lanes that begin with it; their end where no event is that young.
    fn first_since(&self, lanes: &[ToLocate], ends: &Offsets) -> Result<Offsets, String> {
        let Start::At(time) = self.settings.start else { return Ok(Offsets::new()) };
        let failed = |error: KafkaError| error.to_string();
        let list = times_of(lanes.iter().filter(|lane| self.start_matters(lane)), time).map_err(failed)?;
        if list.count() == 0 {
            return Ok(Offsets::new());
        }
        let found = self.consumer.offsets_for_times(list, PATIENCE).map_err(failed)?;
        let one = |element: TopicPartitionListElem<'_>| {
            let place = (element.topic().to_owned(), element.partition());
            let position = match (element.error(), element.offset()) {
                (Err(error), _) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
                (Ok(()), Offset::Offset(offset)) => Ok(Position::from_i64(offset)?),
                (Ok(()), Offset::End) => *ends.get(&place)?,
                (Ok(()), _) => return None,
            };
            Some((place, position))
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
