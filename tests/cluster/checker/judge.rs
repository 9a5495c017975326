//! Which answers must not have been: a pure function of what was published, called and answered.
//!
//! A request that began after a call had returned gets what the call has made so, or something newer. What a pull or an
//! automatic sync has moved is seen a hold time later. Answers that say that the store was away promise nothing, and nobody
//! is judged for not answering.

use std::collections::HashMap;
use std::time::Duration;

use super::history::{Answer, Call, Effect, History, Said, Source, Span};

/// An answer that must not have been, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Which of the answers.
    pub(super) answer: usize,
    pub(super) why: String,
}

/// From a time on nothing older than a version is right.
#[derive(Clone, Copy)]
struct Floor<'a> {
    from: Duration,
    version: usize,
    by: By<'a>,
}

/// What says so.
#[derive(Clone, Copy)]
enum By<'a> {
    Call(&'a Call),
    /// An answer of the records, a hold time later.
    Answer(&'a Answer),
}

/// The answers that must not have been.
pub(super) fn judge(history: &History, hold: Duration) -> Vec<Wrong> {
    let judge = Judge::new(history, hold);
    let wrong = |(number, answer)| Some(Wrong { answer: number, why: judge.why_wrong(answer)? });
    history.answers.iter().enumerate().filter_map(wrong).collect()
}

/// A history, and what is looked up in it.
struct Judge<'a> {
    history: &'a History,
    /// For each subject and node, by time; the versions grow.
    floors: HashMap<(usize, usize), Vec<Floor<'a>>>,
    /// Deletes of images, by what they have deleted.
    deletes: HashMap<(usize, &'a str), Vec<&'a Call>>,
    /// When each subject was first asked for.
    first_asked: HashMap<usize, Duration>,
    /// The ends of rules, and their beginnings.
    severed: Vec<(&'static str, &'a Call)>,
    restored: Vec<(&'static str, &'a Call)>,
}

impl<'a> Judge<'a> {
    fn new(history: &'a History, hold: Duration) -> Self {
        let mut judge = Self {
            history,
            floors: HashMap::new(),
            deletes: HashMap::new(),
            first_asked: HashMap::new(),
            severed: Vec::new(),
            restored: Vec::new(),
        };
        for call in &history.calls {
            judge.note_call(call);
        }
        for answer in &history.answers {
            judge.note_answer(answer, hold);
        }
        for floors in judge.floors.values_mut() {
            floors.sort_by_key(|floor| floor.from);
            let mut highest = None;
            floors.retain(|floor| {
                let is_higher = highest < Some(floor.version);
                highest = highest.max(Some(floor.version));
                is_higher
            });
        }
        judge
    }

    fn note_call(&mut self, call: &'a Call) {
        match &call.effect {
            Effect::Renewed(subject) => self.raise_floor(*subject, call),
            Effect::Restored(rule) => self.restored.push((rule, call)),
            Effect::Deleted { subject, digest } => self.deletes.entry((*subject, digest)).or_default().push(call),
            Effect::Severed(rule) => self.severed.push((rule, call)),
        }
    }

    fn raise_floor(&mut self, subject: usize, call: &'a Call) {
        let Some(version) = self.history.subjects[subject].version_at(call.span.begin) else { return };
        for node in (0..self.history.nodes).filter(|node| !call.lagging.contains(node)) {
            let floor = Floor { from: call.span.end, version, by: By::Call(call) };
            self.floors.entry((subject, node)).or_default().push(floor);
        }
    }

    fn note_answer(&mut self, answer: &'a Answer, hold: Duration) {
        let first = self.first_asked.entry(answer.subject).or_insert(answer.span.begin);
        *first = answer.span.begin.min(*first);
        let Said::Means(digest, Source::Records) = &answer.said else { return };
        let Some(version) = self.history.subjects[answer.subject].version_of(digest) else { return };
        for node in 0..self.history.nodes {
            let floor = Floor { from: answer.span.end + hold, version, by: By::Answer(answer) };
            self.floors.entry((answer.subject, node)).or_default().push(floor);
        }
    }

    fn why_wrong(&self, answer: &Answer) -> Option<String> {
        match &answer.said {
            Said::Means(_, Source::StoreAway) | Said::Nothing => None,
            Said::Means(digest, Source::Records | Source::Upstream) => {
                self.why_meaning_wrong(answer, digest).or_else(|| self.why_filled_wrong(answer))
            }
            Said::Absent => self.why_absence_wrong(answer),
        }
    }

    fn why_meaning_wrong(&self, answer: &Answer, digest: &str) -> Option<String> {
        let (subject, begin) = (&self.history.subjects[answer.subject], answer.span.begin);
        let is_published = |version: &usize| subject.versions[*version].published.begin <= answer.span.end;
        let Some(version) = subject.version_of(digest).filter(is_published) else {
            return Some(format!("`{digest}`, which the upstream has never said"));
        };
        let floors = self.floors.get(&(answer.subject, answer.node)).map_or(&[][..], Vec::as_slice);
        let floor = &floors[..floors.partition_point(|floor| floor.from <= begin)].last();
        if let Some(Floor { version: least, by, .. }) = floor.filter(|floor| floor.version > version) {
            return Some(match by {
                By::Call(call) => format!("version {version}, but {least} was there before {}", told(call)),
                By::Answer(other) => format!(
                    "version {version}, but node {} had answered {least} by {:.3?}, more than a hold time before",
                    other.node, other.span.end
                ),
            });
        }
        if let Some(call) =
            self.restored_before(answer).filter(|call| subject.version_at(call.span.begin) > Some(version))
        {
            return Some(format!("version {version}, of before {}", told(call)));
        }
        let next = subject.versions.get(version + 1)?;
        let deletes = self.deletes.get(&(answer.subject, digest))?;
        let binds = |call: &&&Call| call.binds(answer.node, begin) && next.published.end <= call.span.begin;
        deletes.iter().find(binds).map(|call| format!("version {version}, which was replaced before {}", told(call)))
    }

    /// The last call that has made the rule anew by which this is filled, unless the rule may have gone again.
    fn restored_before(&self, answer: &Answer) -> Option<&'a Call> {
        let rule = self.history.subjects[answer.subject].rule;
        let of_rule = |calls: &[(&'static str, &'a Call)]| {
            calls.iter().filter(|(of, _)| *of == rule).map(|(_, call)| *call).collect::<Vec<_>>()
        };
        let restored = of_rule(&self.restored).into_iter().filter(|call| call.binds(answer.node, answer.span.begin));
        let last = restored.max_by_key(|call| call.span.end)?;
        let goes = |call: &Call| call.span.begin >= last.span.begin && call.span.begin <= answer.span.end;
        (!of_rule(&self.severed).into_iter().any(goes)).then_some(last)
    }

    /// Something that nobody had asked for was filled, although nothing covered it.
    fn why_filled_wrong(&self, answer: &Answer) -> Option<String> {
        let rule = self.history.subjects[answer.subject].rule;
        let first = *self.first_asked.get(&answer.subject)?;
        let severed = self.severed.iter().filter(|(of, call)| *of == rule && call.binds(answer.node, first));
        let mut severed = severed.filter(|(_, call)| {
            let later = self.restored.iter().filter(|(of, other)| *of == rule && other.span.begin >= call.span.end);
            later.map(|(_, other)| other.span.begin).min().is_none_or(|restored| answer.span.end <= restored)
        });
        severed.next().map(|(_, call)| format!("filled after {}", told(call)))
    }

    /// There was something, all the time.
    fn why_absence_wrong(&self, answer: &Answer) -> Option<String> {
        let (subject, span) = (&self.history.subjects[answer.subject], answer.span);
        let was_there = subject.versions.first().is_some_and(|first| first.published.end <= span.begin);
        let goes = |published: Span| published.begin <= span.end;
        let has_gone = subject.versions.iter().any(|version| version.digest.is_none() && goes(version.published));
        let is_severed = self.severed.iter().any(|(rule, call)| {
            let later = self.restored.iter().filter(|(of, other)| of == rule && other.span.begin >= call.span.end);
            let known = later.filter(|(_, other)| !other.lagging.contains(&answer.node));
            let until = known.map(|(_, other)| other.span.end).min();
            *rule == subject.rule && call.span.begin <= span.end && until.is_none_or(|until| span.begin <= until)
        });
        (was_there && !has_gone && !is_severed).then(|| "nothing, although there was something all the time".to_owned())
    }
}

fn told(call: &Call) -> String {
    let Call { what, span, lagging, .. } = call;
    format!("`{what}`, which went on from {:.3?} to {:.3?}, with nodes {lagging:?} behind", span.begin, span.end)
}

#[cfg(test)]
mod tests;
