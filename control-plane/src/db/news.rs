//! Notifications between control planes, by LISTEN and NOTIFY, over a separate connection.
//!
//! A notification only wakes its receiver. It is lost while nobody is connected, and does not pass a pooler such as
//! PgBouncer, so receivers also look by themselves from time to time, and after each new connection.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use entrepot_runtime::{Backoff, chain};
use tokio::time::timeout;
use tokio_postgres::AsyncMessage;
use tracing::{debug, warn};

use super::{Db, Error};

/// The channel for: there is something to publish, or to pass on.
const CHANNEL: &str = "entrepot_snapshot";
/// The first and the longest wait before the listener connects again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long LISTEN may take.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

impl Db {
    /// Wakes all listeners, here and in other control planes.
    pub(crate) async fn tell_published(&self) -> Result<(), Error> {
        let connection = self.connect().await?;
        Ok(connection.object.batch_execute(&format!("NOTIFY {CHANNEL}")).await?)
    }

    /// Calls `wake` whenever there may be news, for ever.
    pub(crate) async fn listen(&self, wake: impl Fn()) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let mut connected = false;
            let ended = self.listen_once(&mut connected, &wake).await;
            if connected {
                backoff.reset();
            }
            match ended {
                Ok(()) => debug!("the connection that listens to other control planes has ended, connecting again"),
                // A database that is away is already reported by the pool's connections.
                Err(error) => warn!(error = %chain(&error), "cannot listen to other control planes, trying again"),
            }
            backoff.wait().await;
        }
    }

    /// Listens over one connection until it ends.
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
                    // Notifications may have been lost while nobody was connected.
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
