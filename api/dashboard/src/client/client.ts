/**
 * The API, typed by its contract. Each request shows the access token of the login; one that the server takes no more
 * is exchanged, and the request sent again, once.
 */
import createClient from 'openapi-fetch';

import { login } from '../login/login';
import { Problem } from './problem';
import type { components, paths } from './schema';

type Schemas = components['schemas'];
export type Schema<Name extends keyof Schemas> = Schemas[Name];

export const client = createClient<paths>({ baseUrl: window.location.origin, fetch: authorized });

async function authorized(request: Request): Promise<Response> {
  // A body can be read once, and may be needed twice.
  const again = request.clone();
  const token = await login.token();
  const response = await send(request, token);
  if (response.status !== 401) return response;
  return send(again, await login.replace(token));
}

async function send(request: Request, token: string): Promise<Response> {
  request.headers.set('authorization', `Bearer ${token}`);
  try {
    return await fetch(request);
  } catch (error) {
    if (request.signal.aborted) throw error;
    throw Problem.unreachable();
  }
}

/** The body of an answer, or its problem thrown. */
export async function answered<T>(call: Promise<{ data?: T; error?: unknown; response: Response }>): Promise<T> {
  const { data, error, response } = await call;
  if (!response.ok) throw Problem.of(response, error);
  return data as T;
}
