//! News between control planes, by LISTEN and NOTIFY, over a connection of its own.
//!
//! News only wake: they are lost while nobody is connected and do not pass a pooler such as PgBouncer, so whoever
//! listens also looks by itself from time to time, and after each new connection.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use entrepot_runtime::chain;
use tokio::time::{sleep, timeout};
use tokio_postgres::AsyncMessage;
use tracing::{debug, warn};

use super::{Db, Error};

/// What the news is about: there is something to publish, or to pass on.
const CHANNEL: &str = "entrepot_snapshot";
/// How long the listener waits before it connects again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long LISTEN may take.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

impl Db {
    /// Wakes whoever listens, here and in other control planes.
    pub(crate) async fn tell_published(&self) -> Result<(), Error> {
        let connection = self.connect().await?;
        Ok(connection.0.batch_execute(&format!("NOTIFY {CHANNEL}")).await?)
    }

    /// Calls `wake` whenever there may be news, for ever.
    pub(crate) async fn listen(&self, wake: impl Fn()) {
        let mut wait = RETRY.0;
        loop {
            let mut connected = false;
            let ended = self.listen_once(&mut connected, &wake).await;
            if connected {
                wait = RETRY.0;
            }
            match ended {
                Ok(()) => debug!("the connection that listens to other control planes has ended, connecting again"),
                // The pool's connections tell the operator of a database that is away.
                Err(error) => warn!(error = %chain(&error), "cannot listen to other control planes, trying again"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Listens over one connection, until it ends.
    async fn listen_once(&self, connected: &mut bool, wake: &impl Fn()) -> Result<(), Error> {
        let address = self.address();
        let (client, mut connection) = address.config().connect(address.tls()).await?;
        let listen = async { client.batch_execute(&format!("LISTEN {CHANNEL}")).await };
        let mut listen = pin!(timeout(LISTEN_LIMIT, listen));
        let mut listening = false;
        loop {
            tokio::select! {
                begun = &mut listen, if !listening => {
                    begun.map_err(|elapsed| Error::Away(elapsed.into()))??;
                    (listening, *connected) = (true, true);
                    // What was told while nobody was connected.
                    wake();
                }
                message = poll_fn(|context| connection.poll_message(context)) => match message.transpose()? {
                    Some(AsyncMessage::Notification(_)) => wake(),
                    Some(_) => {}
                    None => return Ok(()),
                },
            }
        }
    }
}
