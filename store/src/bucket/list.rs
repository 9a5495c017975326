//! Listing keys in byte order, also from services that list in another one.
//!
//! Keys order by bytes: `a-b/x` comes before `a/x`, because `-` comes before `/`. S3, Google and Azure list like that.
//! Services that keep objects in folders list folder by folder, so there `a/x` comes before `a-b/x`, and "what comes
//! after" means another set of keys. [`Walk`] brings their pages into our order.

use object_store::list::PaginatedListOptions;

use super::Bucket;
use super::failure::Failure;
use super::limits::Tries;
use crate::{Entry, Key, Prefix};

/// The largest page that every service gives.
const PAGE: usize = 1000;
/// Smaller pages are not worth their request.
const SMALL_PAGE: usize = 16;
/// Comes after whatever a key may go on with below a folder.
const BEHIND_ALL: &str = "~";

/// In which order a service lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By bytes, as we do.
    Bytes,
    /// By the names of folders and files, one level after the other.
    Folders,
}

/// A service that lists by bytes did not.
#[derive(Debug, thiserror::Error)]
#[error("the service lists keys out of order")]
struct OutOfOrder;

/// At most `limit` objects below `prefix` and behind `start_after`, in byte order.
pub(super) async fn list(
    bucket: &Bucket,
    prefix: &Prefix,
    start_after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Entry>, Failure> {
    let (prefix, mut after) = (prefix.as_str(), start_after.map_or("", Key::as_str));
    if !after.starts_with(prefix) {
        if after > prefix {
            return Ok(Vec::new());
        }
        after = "";
    }
    if limit == 0 {
        return Ok(Vec::new());
    }
    match bucket.order {
        Order::Bytes => in_their_order(bucket, prefix, after, limit).await,
        Order::Folders => {
            let mut walk = Walk { bucket, after, limit, found: Vec::new() };
            walk.folder(prefix.to_owned()).await?;
            Ok(walk.found)
        }
    }
}

/// The first page below `prefix`, in the order of the service.
pub(super) async fn raw(bucket: &Bucket, prefix: &Prefix) -> Result<Vec<Entry>, Failure> {
    Ok(bucket.page(prefix.as_str(), &From::After(String::new()), PAGE).await?.entries)
}

async fn in_their_order(bucket: &Bucket, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>, Failure> {
    let mut found: Vec<Entry> = Vec::new();
    let mut from = From::After(after.to_owned());
    loop {
        let page = bucket.page(prefix, &from, limit - found.len()).await?;
        for entry in page.entries {
            // Some services do not know where to begin, and begin at the beginning.
            if entry.key.as_str() > after {
                if found.last().is_some_and(|last| last.key >= entry.key) {
                    return Err(Failure::Other(Box::new(OutOfOrder)));
                }
                found.push(entry);
            }
        }
        match page.next {
            Some(token) if found.len() < limit => from = From::Token(token),
            _ => break,
        }
    }
    found.truncate(limit);
    Ok(found)
}

/// Where a page begins.
enum From {
    /// Behind a name, which need not be there; empty: at the beginning.
    After(String),
    /// Where the page before it ended.
    Token(String),
}

struct Page {
    entries: Vec<Entry>,
    /// There is more.
    next: Option<String>,
}

impl Bucket {
    /// A page of objects, as the service orders them.
    async fn page(&self, prefix: &str, from: &From, limit: usize) -> Result<Page, Failure> {
        let mut options = PaginatedListOptions { max_keys: Some(limit.min(PAGE)), ..PaginatedListOptions::default() };
        match from {
            From::After(after) if after.is_empty() => {}
            From::After(after) => options.offset = Some(format!("{}{after}", self.prefix)),
            From::Token(token) => options.page_token = Some(token.clone()),
        }
        let ours = self.prefix.as_str();
        let whole = format!("{ours}{prefix}");
        let asked = Some(whole.as_str()).filter(|whole| !whole.is_empty());
        let objects = self.client.objects();
        let page = Tries::small().idempotent(|| objects.list_paginated(asked, options.clone())).await?;
        let entries = page.result.objects.iter().filter_map(|meta| {
            // What somebody else put there is not ours to show.
            let key = Key::parse(meta.location.as_ref().strip_prefix(ours)?).ok()?;
            let version = self.client.version_of(meta).ok();
            Some(Entry { key, size_bytes: meta.size, modify_time: meta.last_modified, version })
        });
        Ok(Page { entries: entries.collect(), next: page.page_token.filter(|token| !token.is_empty()) })
    }
}

/// A walk through folders in byte order.
struct Walk<'a> {
    bucket: &'a Bucket,
    after: &'a str,
    limit: usize,
    found: Vec<Entry>,
}

/// A folder that comes after its siblings whose names go on with `-` or `.`, and so waits for them.
struct Held {
    name: String,
    /// All that is in it, sorted, or `None` if that is not read yet.
    entries: Option<Vec<Entry>>,
}

impl Walk<'_> {
    /// Goes through `folder`, which is empty or ends with `/`.
    async fn folder(&mut self, folder: String) -> Result<(), Failure> {
        let mut held: Vec<Held> = Vec::new();
        let mut from = String::new();
        if let Some(inner) = self.after.strip_prefix(folder.as_str()).filter(|inner| !inner.is_empty()) {
            let (name, within) = inner.split_once('/').map_or((inner, false), |(name, _)| (name, true));
            // The service has listed these before, and we have not.
            let shorter = name.match_indices(['-', '.']).map(|(at, _)| &name[..at]);
            held.extend(shorter.map(|name| Held { name: name.to_owned(), entries: None }));
            if within {
                Box::pin(self.folder(format!("{folder}{name}/"))).await?;
            } else {
                held.push(Held { name: name.to_owned(), entries: None });
            }
            from = format!("{folder}{name}/{BEHIND_ALL}");
        }
        while !self.is_full() {
            let size = (self.limit + 1).clamp(SMALL_PAGE, PAGE);
            let page = self.bucket.page(&folder, &From::After(from), size).await?;
            let last = page.next.is_none();
            let mut children = children(&folder, page.entries);
            let Some(end) = children.last_mut() else { break };
            from = format!("{folder}{}", end.name);
            if let Some(entries) = &mut end.below {
                from = format!("{from}/{BEHIND_ALL}");
                if !last {
                    // There may be more in it than the page has.
                    *entries = None;
                }
            }
            for child in children {
                self.child(&folder, child, &mut held).await?;
            }
            if last {
                break;
            }
        }
        self.release(&folder, &mut held, |_| false).await
    }

    async fn child(&mut self, folder: &str, child: Child, held: &mut Vec<Held>) -> Result<(), Failure> {
        let name = child.name;
        let path = format!("{folder}{name}/");
        if child.below.is_some() && !self.after.starts_with(&path) && *path < *self.after {
            return Ok(());
        }
        let goes_on = |held: &Held| name.strip_prefix(&held.name).is_some_and(|rest| rest.starts_with(['-', '.']));
        self.release(folder, held, goes_on).await?;
        match child.below {
            Some(entries) => held.push(Held { name, entries }),
            None => self.emit(child.file),
        }
        Ok(())
    }

    /// Goes through the folders that wait, the last one first, until one has to wait on.
    async fn release(
        &mut self,
        folder: &str,
        held: &mut Vec<Held>,
        waits: impl Fn(&Held) -> bool,
    ) -> Result<(), Failure> {
        while !self.is_full()
            && let Some(next) = held.pop_if(|held| !waits(held))
        {
            match next.entries {
                Some(entries) => self.emit(entries),
                None => Box::pin(self.folder(format!("{folder}{}/", next.name))).await?,
            }
        }
        Ok(())
    }

    fn emit(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let room = self.limit - self.found.len();
        self.found.extend(entries.into_iter().filter(|entry| entry.key.as_str() > self.after).take(room));
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.limit
    }
}

/// A file or a folder, one level below another folder.
struct Child {
    name: String,
    /// The object, if it is a file.
    file: Option<Entry>,
    /// If it is a folder: all that is in it, sorted, or `None` if that is not known.
    below: Option<Option<Vec<Entry>>>,
}

/// The objects of a page, sorted into what is directly in `folder`.
fn children(folder: &str, entries: Vec<Entry>) -> Vec<Child> {
    let mut children: Vec<Child> = Vec::new();
    for entry in entries {
        let Some(inner) = entry.key.as_str().strip_prefix(folder) else { continue };
        let Some((name, _)) = inner.split_once('/') else {
            children.push(Child { name: inner.to_owned(), file: Some(entry), below: None });
            continue;
        };
        match children.last_mut() {
            Some(Child { name: last, below: Some(Some(entries)), .. }) if last == name => entries.push(entry),
            _ => children.push(Child { name: name.to_owned(), file: None, below: Some(Some(vec![entry])) }),
        }
    }
    for entries in children.iter_mut().filter_map(|child| child.below.as_mut()?.as_mut()) {
        entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    }
    children
}
