import { useEffect, useReducer, useSyncExternalStore } from 'react';

import type { Problem } from '../client/problem';
import type { JobEvent } from './events';
import { live } from './live';
import type { Liveness, SystemNews } from './socket';
import { fold, NOTHING_YET, type Transcript } from './transcript';

export function useLiveness(): Liveness {
  return useSyncExternalStore(live.onLiveness, live.liveness);
}

/** How workers and queue stand, told each second in which that changes. */
export function useSystem(): SystemNews | null {
  return useSyncExternalStore(live.watchSystem, live.news);
}

export interface Followed {
  transcript: Transcript;
  problem: Problem | null;
  jobId: string | null;
}

type Change = { events: JobEvent[] } | { problem: Problem | null } | { jobId: string | null };

function change(followed: Followed, change: Change): Followed {
  if ('jobId' in change) return { transcript: NOTHING_YET, problem: null, jobId: change.jobId };
  if ('problem' in change) return { ...followed, problem: change.problem };
  return { ...followed, transcript: change.events.reduce(fold, followed.transcript) };
}

/** What a job says, as it says it. Events that come between two frames are drawn together. */
export function useTranscript(jobId: string | null): Followed {
  const [followed, tell] = useReducer(change, { transcript: NOTHING_YET, problem: null, jobId });
  useEffect(() => {
    tell({ jobId });
    if (jobId === null) return;
    let heard: JobEvent[] = [];
    let timer: ReturnType<typeof setTimeout> | null = null;
    const draw = () => {
      timer = null;
      tell({ events: heard });
      heard = [];
    };
    const leave = live.follow(jobId, {
      hear: (event) => {
        heard.push(event);
        // No frame comes to a page that is not looked at: this goes on there.
        timer ??= setTimeout(draw, 16);
      },
      fail: (problem) => tell({ problem }),
    });
    return () => {
      leave();
      if (timer !== null) clearTimeout(timer);
    };
  }, [jobId]);
  // Until the effect ran, what is there is of the job before.
  return followed.jobId === jobId ? followed : { transcript: NOTHING_YET, problem: null, jobId };
}
