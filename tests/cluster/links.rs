//! The links of one member to what it stands on, and of other nodes to it. A cluster has them if it is set up so.

use std::net::SocketAddr;

use entrepot_test_support::Link;

use crate::settings::{Addresses, Ways};

/// A member's links. A control plane uses the one to the bucket alone.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) redis: Link,
    pub(crate) store: Link,
    /// From all other nodes to this one.
    pub(crate) peer: Link,
    /// To each control plane.
    pub(crate) apis: Vec<Link>,
}

impl Links {
    /// The links of the member at `at`.
    pub(crate) async fn start(at: Addresses, redis: SocketAddr, store: SocketAddr, apis: &[SocketAddr]) -> Self {
        let mut to_apis = Vec::new();
        for (number, api) in (3..).zip(apis) {
            to_apis.push(Link::start_at(at.link(number), *api).await);
        }
        Self {
            redis: Link::start_at(at.link(0), redis).await,
            store: Link::start_at(at.link(1), store).await,
            peer: Link::start_at(at.link(2), at.peer()).await,
            apis: to_apis,
        }
    }

    /// The ways through these links.
    pub(crate) fn ways(&self) -> Ways {
        Ways {
            redis_url: format!("redis://{}", self.redis.address()),
            store_endpoint: format!("http://{}", self.store.address()),
            apis: self.apis.iter().map(Link::address).collect(),
            peer: self.peer.address(),
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Link> {
        [&self.redis, &self.store, &self.peer].into_iter().chain(&self.apis)
    }
}
