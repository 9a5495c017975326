//! Lists keys in byte order, even from services that list in another order.
//!
//! In byte order `a-b/x` comes before `a/x`, because `-` comes before `/`. S3, Google and Azure list like that.
//! Services that keep objects in folders list folder by folder; there `a/x` comes before `a-b/x`, and "start after this
//! key" selects another set of keys. [`Walk`] brings their pages into byte order.

use object_store::list::PaginatedListOptions;

use super::Bucket;
use super::failure::Failure;
use super::limits::Tries;
use crate::{Entry, Key, Prefix};

/// The largest page that every service supports.
const PAGE: usize = 1000;
/// Smaller pages are not worth a request.
const SMALL_PAGE: usize = 16;
/// Sorts after anything that can follow a folder's name in a key.
const BEHIND_ALL: &str = "~";

/// The order in which a service lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// In byte order, like us.
    Bytes,
    /// By the names of folders and files, one level after the other.
    Folders,
}

/// A service that should list in byte order did not.
#[derive(Debug, thiserror::Error)]
#[error("the service lists keys out of order")]
struct OutOfOrder;

/// At most `limit` objects below `prefix` and after `start_after`, in byte order.
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
            // Some services ignore the starting point and begin at the start.
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

/// The beginning of a page.
enum From {
    /// After a name, which need not exist; if empty, at the start.
    After(String),
    /// Where the previous page ended.
    Token(String),
}

struct Page {
    entries: Vec<Entry>,
    /// The beginning of the next page, if there is one.
    next: Option<String>,
}

impl Bucket {
    /// A page of objects in the order of the service.
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
            // Objects of others in the bucket are not shown.
            let key = Key::parse(meta.location.as_ref().strip_prefix(ours)?).ok()?;
            let version = self.client.version_of(meta).ok();
            Some(Entry { key, size_bytes: meta.size, modify_time: meta.last_modified, version })
        });
        Ok(Page { entries: entries.collect(), next: page.page_token.filter(|token| !token.is_empty()) })
    }
}

/// A walk through the folders in byte order.
struct Walk<'a> {
    bucket: &'a Bucket,
    after: &'a str,
    limit: usize,
    found: Vec<Entry>,
}

/// A folder that comes after siblings whose names continue with `-` or `.`, so it has to wait for them.
struct Held {
    name: String,
    /// Everything in it, sorted; `None` if it has not been read yet.
    entries: Option<Vec<Entry>>,
}

impl Walk<'_> {
    /// Walks through `folder`, which is empty or ends with `/`.
    async fn folder(&mut self, folder: String) -> Result<(), Failure> {
        let mut held: Vec<Held> = Vec::new();
        let mut from = String::new();
        if let Some(inner) = self.after.strip_prefix(folder.as_str()).filter(|inner| !inner.is_empty()) {
            let (name, within) = inner.split_once('/').map_or((inner, false), |(name, _)| (name, true));
            // The service has listed these earlier, but we have not.
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
                    // It may contain more than is on this page.
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

    /// Walks through the waiting folders, the last one first, until one must keep waiting.
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

/// A file or a folder directly below another folder.
struct Child {
    name: String,
    /// The object, if there is a file of this name.
    file: Option<Entry>,
    /// If there is a folder of this name: everything in it, sorted, or `None` if that is not known.
    below: Option<Option<Vec<Entry>>>,
}

/// The objects of a page, grouped by the children of `folder`.
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
