import type { ChatBody } from './queries';

export interface Settings {
  model: string;
  system: string;
  sessionId: string | null;
  /** Null: what the server gives who asks for nothing. */
  tools: string[] | null;
  effort: NonNullable<ChatBody['effort']> | null;
  thinking: NonNullable<ChatBody['thinking']> | null;
  maxTurns: number | '';
  budget: number | '';
}

export const DEFAULTS: Settings = {
  model: '',
  system: '',
  sessionId: null,
  tools: null,
  effort: null,
  thinking: null,
  maxTurns: '',
  budget: '',
};

export function bodyOf({ model, system, sessionId, tools, effort, thinking, maxTurns, budget }: Settings): Omit<ChatBody, 'message'> {
  return {
    ...(model.trim() === '' ? {} : { model: model.trim() }),
    ...(system.trim() === '' ? {} : { system_prompt: system }),
    ...(sessionId === null ? {} : { session_id: sessionId }),
    ...(tools === null ? {} : { tools }),
    ...(effort === null ? {} : { effort }),
    ...(thinking === null ? {} : { thinking }),
    ...(maxTurns === '' ? {} : { max_turns: maxTurns }),
    ...(budget === '' ? {} : { max_budget_usd: budget }),
  };
}
