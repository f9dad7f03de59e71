import { createContext, use, useSyncExternalStore } from 'react';

import { login, type LoginState, type User } from './login';

export function useLogin(): LoginState {
  return useSyncExternalStore(login.subscribe, login.state);
}

export const Me = createContext<User | null>(null);

/** The account whose login this is. */
export function useMe(): User {
  const user = use(Me);
  if (user === null) throw new Error('nobody is logged in here');
  return user;
}
