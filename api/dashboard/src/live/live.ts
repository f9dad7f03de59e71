import { login } from '../login/login';
import { type Line, LiveSocket } from './socket';

export const live = new LiveSocket({
  token: (forMs) => login.token(forMs),
  replace: (refused) => login.replace(refused),
  open: (token) => new WebSocket('/api/ws', ['claude.v1', `bearer.${token}`]) as Line,
  random: Math.random,
  after: (ms, act) => {
    const timer = setTimeout(act, ms);
    return () => clearTimeout(timer);
  },
  now: Date.now,
});

window.addEventListener('online', live.hurry);
