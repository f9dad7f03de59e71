/** What was said in the playground. It outlives a look at another page, and ends with the login. */
import { createContext, type ReactNode, use, useState } from 'react';

import { DEFAULTS, type Settings } from './settings';

export interface Turn {
  message: string;
  jobId: string;
}

export interface Conversation {
  turns: readonly Turn[];
  settings: Settings;
}

type Change = (change: (conversation: Conversation) => Conversation) => void;

const Context = createContext<[Conversation, Change] | null>(null);

export function ConversationKeeper({ children }: { children: ReactNode }) {
  const kept = useState<Conversation>({ turns: [], settings: DEFAULTS });
  return <Context value={kept}>{children}</Context>;
}

export function useConversation(): [Conversation, Change] {
  const kept = use(Context);
  if (kept === null) throw new Error('nobody keeps the conversation');
  return kept;
}
