//! How jobs stand that have said nothing for a while. Nothing tells a job that thinks from one whose news was
//! lost, so each is looked at every few seconds; all that are due at about the same time are looked at together, by
//! one statement and one round to Redis, however many are watched.

use std::{collections::HashMap, time::Duration};

use shared::{Result, event::EventId, events::Events, id::JobId, job::JobState, jobs::Jobs};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// How long the first of a batch waits for others.
const GATHERING: Duration = Duration::from_millis(20);
/// The most jobs of one look.
const BATCH: usize = 500;

/// What a look shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// How far the job is.
    pub state: JobState,
    /// The newest event in Redis.
    pub newest: Option<EventId>,
}

type Question = (JobId, oneshot::Sender<Glance>);

/// Looks at jobs, many at a time.
pub struct Glances {
    questions: mpsc::Sender<Question>,
    _looking: AbortOnDropHandle<()>,
}

impl Glances {
    /// Through these doors. To be called within the runtime.
    pub fn new(jobs: Jobs, events: Events) -> Self {
        let (questions, inbox) = mpsc::channel(BATCH);
        Self { questions, _looking: AbortOnDropHandle::new(tokio::spawn(look_on(jobs, events, inbox))) }
    }

    /// How `job` stands; `None` where it is not there, or nobody can tell.
    pub async fn at(&self, job: JobId) -> Option<Glance> {
        let (reply, answer) = oneshot::channel();
        self.questions.send((job, reply)).await.ok()?;
        answer.await.ok()
    }
}

async fn look_on(jobs: Jobs, events: Events, mut inbox: mpsc::Receiver<Question>) {
    while let Some(first) = inbox.recv().await {
        let mut asked = HashMap::from([first]);
        let gather = async {
            while asked.len() < BATCH
                && let Some((job, reply)) = inbox.recv().await
            {
                // One job has one feed: whoever asked before has given up.
                asked.insert(job, reply);
            }
        };
        let _ = timeout(GATHERING, gather).await;
        // Whoever gets no answer looks for itself.
        if let Ok(glances) = look(&jobs, &events, asked.keys().copied().collect()).await {
            for (job, glance) in glances {
                if let Some(reply) = asked.remove(&job) {
                    let _ = reply.send(glance);
                }
            }
        }
    }
}

async fn look(jobs: &Jobs, events: &Events, asked: Vec<JobId>) -> Result<Vec<(JobId, Glance)>> {
    // Row first: what the log gets after a row was read is of that state or a later one.
    let states = jobs.states(&asked).await?;
    let newest = events.newest(&asked).await?;
    let glance = |(job, newest): (JobId, Option<EventId>)| Some((job, Glance { state: *states.get(&job)?, newest }));
    Ok(asked.into_iter().zip(newest).filter_map(glance).collect())
}
